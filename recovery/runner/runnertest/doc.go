// Package runnertest proves that a program's capabilities survive its deaths.
package runnertest

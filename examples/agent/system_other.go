//go:build !unix

package main

import (
	"os"
	"os/exec"
)

// killWithChildren: without process groups a timeout ends the shell alone.
func killWithChildren(*exec.Cmd) {}

// syncDir: Windows has no such call; NTFS journals its directories.
func syncDir(*os.Root, string) error { return nil }

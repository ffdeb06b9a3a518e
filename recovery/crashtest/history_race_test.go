//go:build race

package crashtest

// raceDetector thins out what has one goroutine, and takes ten times as long.
const raceDetector = true

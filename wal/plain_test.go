package wal

import (
	"strings"
	"testing"
)

// plain stops at each byte that does not stand for itself, wherever it lies, and at no other.
func TestPlain(t *testing.T) {
	for c := range 256 {
		special := c < ' ' || c == '"' || c == '\\' || c >= 0x80
		for length := range 20 {
			for at := range length {
				for _, before := range []string{"a", " ", "~", "\x7f", "!", "#", "[", "]"} {
					s := strings.Repeat(before, at) + string([]byte{byte(c)}) + strings.Repeat("\"", length-at-1)
					want := at
					if !special {
						want = min(at+1, len(s))
					}
					if got := plain(s); got != want {
						t.Fatalf("%q: %d, want %d", s, got, want)
					}
					if got := plain([]byte(s)); got != want {
						t.Fatalf("bytes of %q: %d, want %d", s, got, want)
					}
				}
			}
		}
	}
}

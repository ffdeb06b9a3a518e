package crashtest

import (
	"testing"

	"pgregory.net/rapid"
)

// OnceFuzzed is what Fuzz does with one input.
func OnceFuzzed(t *testing.T, in []byte, property func(*rapid.T)) {
	rapid.MakeFuzz(property)(t, padded(in))
}

package crashtest

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// Fuzz is f.Fuzz for a property of rapid's, so that go test -fuzz looks for bytes that falsify it, led by coverage, where
// rapid.Check draws blindly. Bytes stand for draws, eight for each.
//
// It is rapid.MakeFuzz with two things added. Bytes that end before the property has drawn all it wants go on with zeros, of
// which each draw makes the least there is; with MakeFuzz alone such inputs, and so most of those that fuzzing tries, are
// skipped. And there are seeds: no bytes, and noise of several lengths, the same in every run, which an ordinary go test runs
// the property on. More seeds may be added to f before.
//
// To run the property in a bubble of testing/synctest, wrap it in rapid.SyncTest.
func Fuzz(f *testing.F, property func(*rapid.T)) {
	f.Helper()
	f.Add([]byte(nil))
	for seed, draws := range []int{8, 32, 128, 512, 512, 2048, 2048, 2048} {
		f.Add(noise(uint64(seed), 8*draws))
	}
	target := rapid.MakeFuzz(property)
	f.Fuzz(func(t *testing.T, in []byte) { target(t, padded(in)) })
}

// enough zeros for whatever a property draws once it gets nothing but the least: a loop that goes on while it draws zeros is
// cut off, and the input is skipped.
const enough = 64 << 10

// padded begins the zeros at a whole draw.
func padded(in []byte) []byte {
	return append(in[:len(in):len(in)], make([]byte, enough+(8-len(in)%8)%8)...)
}

// noise is the same for the same seed.
func noise(seed uint64, n int) []byte {
	r, bytes := rand.New(rand.NewPCG(seed, uint64(n))), make([]byte, n)
	for i := range bytes {
		bytes[i] = byte(r.Uint32())
	}
	return bytes
}

//go:build goexperiment.jsonv2

package wal

import (
	"encoding/json/jsontext"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// jsontext is the standard library's strict JSON, which came later than this package's. Run with GOEXPERIMENT=jsonv2,
// the two are held equal, but for what is meant to differ: depth (100 here, 10,000 there) and a number's range, which
// jsontext does not look at.

func jsontextTakes(in []byte) error {
	d := jsontext.NewDecoder(strings.NewReader(string(in)))
	if _, err := d.ReadValue(); err != nil {
		return err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("something follows")
	}
	return nil
}

func differsFromJSONText(t testing.TB, in []byte) {
	var s jsonScanner
	_, ours := s.check(in)
	theirs := jsontextTakes(in)
	if ours != nil && (strings.Contains(ours.Error(), "deeper than") || strings.Contains(ours.Error(), "range of a double")) {
		return
	}
	require.Equal(t, theirs == nil, ours == nil, "%q: ours %v, theirs %v", in, ours, theirs)
}

func TestStrictJSON_agrees_with_jsontext(t *testing.T) {
	for _, c := range strictJSON {
		differsFromJSONText(t, []byte(c.in))
	}
	for _, c := range notStrictJSON {
		differsFromJSONText(t, []byte(c.in))
	}
}

func FuzzStrictJSONAgreesWithJSONText(f *testing.F) {
	for _, c := range strictJSON {
		f.Add([]byte(c.in))
	}
	for _, c := range notStrictJSON {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) { differsFromJSONText(t, in) })
}

package runner

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

func double(_ context.Context, n int) (int, error) { return 2 * n, nil }

func TestDo(t *testing.T) {
	reg := NewRegistry()
	c := Add(reg, "double", Func[int, int](double), Settings{})
	r := running(t, reg, Options{})
	out, err := c.Do(t.Context(), r, 21)
	require.NoError(t, err)
	require.Equal(t, 42, out)
}

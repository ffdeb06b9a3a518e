package recovery

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal/crashfs"
)

// What a command returns is the job as it stands after that command, though another one on the same job waits right behind it.
// (Of two attempts that begin at once, each was sometimes told that it was the second: the job was looked up when the next one
// had the turn already. And who believes to be the second is not fenced out.)
func TestA_command_returns_the_job_as_it_left_it(t *testing.T) {
	e := inMemory(t, crashfs.New(), Options{})
	id := "job"
	_, err := e.Do(t.Context(), Submit(Submission{JobID: id}), Validate(id), Start(id))
	require.NoError(t, err)
	const each, sides = 2000, 4
	told := make([][]int, sides)
	var all sync.WaitGroup
	for i := range sides {
		all.Go(func() {
			for range each {
				job, err := e.Resume(context.Background(), id)
				if err != nil {
					return
				}
				told[i] = append(told[i], job.Attempts)
			}
		})
	}
	all.Wait()
	seen := make(map[int]bool)
	for _, attempts := range told {
		require.Len(t, attempts, each)
		for _, n := range attempts {
			require.False(t, seen[n], "attempt %d has begun twice", n)
			seen[n] = true
		}
	}
}

package crashtest

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"pgregory.net/rapid"
)

// CheckDamage does a damage to a copy of what a healthy log left, and fails the test unless every way to read a log's
// directory (see [Examine]) leads to its verdict; unless what is refused leaves every byte as it was; and unless the events
// that are not damaged, and all jobs that have no damaged event, are what they were. Of a refused log, what [wal.Salvage]
// saves is held to the same. The seed chooses among the places where the damage may be done. false: the image has none.
func CheckDamage(t rapid.TB, healthy Image, d Damage, seed uint64) (done bool) {
	t.Helper()
	before := Judge(healthy)
	if before.Verdict != Unharmed {
		t.Fatalf("crashtest: the image is not that of a healthy log: %v", before)
	}
	img := healthy.Clone()
	if !d.Do(rand.New(rand.NewPCG(seed, 0)), img) {
		if !img.Equal(healthy) {
			t.Fatalf("%v (seed %d): it says that there is nothing to do, and changed something", d, seed)
		}
		return false
	}
	now := Judge(img)
	if now.Verdict != d.Verdict {
		t.Fatalf("%v (seed %d): should be %s, but the judge says: %v", d, seed, d.Verdict, now)
	}
	if err := errors.Join(examine(img, now, before.Events), now.since(before)); err != nil {
		t.Fatalf("%v (seed %d): %v", d, seed, err)
	}
	return true
}

// since holds what is delivered now to what was before the damage: an event may be missing behind the others, parked, or
// new, and is never another one.
func (j Judgement) since(before Judgement) error {
	touched := make(map[string]bool)
	for _, e := range j.Events {
		switch {
		case e.Seq > before.Last || e.Problem != "":
			touched[e.JobID] = true
		case !sameEvent(e, before.Events[e.Seq-before.First]):
			return fmt.Errorf("seq %d is another event", e.Seq)
		}
	}
	if j.Verdict != Unharmed && j.Verdict != Parked {
		return nil
	}
	for id, state := range before.States {
		if !touched[id] && (j.States[id] != state || j.Stuck[id] != 0) {
			return fmt.Errorf("job %q was %s, and is %s (parked by seq %d)", id, state, j.States[id], j.Stuck[id])
		}
	}
	return nil
}

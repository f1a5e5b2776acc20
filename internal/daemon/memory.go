// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"reflect"
	"time"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/state"
)

// rememberEvery is the least time between two writes of what is known of the
// others. Losing that much costs a question to the join list, and a disk that
// is a memory card lives longer.
const rememberEvery = 5 * time.Second

// memory is how objects were written to disk last.
type memory struct {
	at    time.Time
	saved state.Remembered
	err   error // of the last attempt
}

// recallObjects reads what this node knew of the others. A damaged file is set
// aside: the others still know all of it.
func (d *daemon) recallObjects() (gossip.Remembered, error) {
	saved, err := d.dir.Objects()
	if errors.Is(err, state.ErrDamaged) {
		aside, asideErr := d.dir.SetAside(state.ObjectsFile)
		if asideErr != nil {
			return gossip.Remembered{}, errors.Join(err, asideErr)
		}
		d.log.Error("remembered nodes are lost; asking the join list", "err", err, "kept", aside)
		return gossip.Remembered{}, nil
	}
	if err != nil {
		return gossip.Remembered{}, err
	}
	d.absences = newAbsences(saved.Absent)
	r := gossip.Remembered{Objects: saved.Objects}
	for _, h := range saved.Highest {
		r.Highest = append(r.Highest, gossip.Highest(h))
	}
	return r, nil
}

// remember saves what this node knows of the others. Without force it does so
// only every rememberEvery, and returns the last attempt's error in between: a
// disk does not get well by not being asked.
func (d *daemon) remember(now time.Time, force bool) error {
	if force || now.Sub(d.memory.at) >= rememberEvery {
		d.memory.at = now // also after an error: a full disk is not asked more often
		d.memory.err = d.save()
	}
	return d.memory.err
}

// save writes what this node knows of the others, if that has changed.
func (d *daemon) save() error {
	r := d.gossip.Remember()
	out := state.Remembered{Objects: r.Objects, Absent: d.absences.save()}
	for _, h := range r.Highest {
		out.Highest = append(out.Highest, state.Highest(h))
	}
	if reflect.DeepEqual(out, d.memory.saved) {
		return nil
	}
	if err := d.dir.SaveObjects(out); err != nil {
		return err
	}
	d.memory.saved = out
	return nil
}

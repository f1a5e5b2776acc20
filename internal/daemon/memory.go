// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/state"
)

// rememberEvery is the least time between two writes of what is known of the
// others. Losing that much costs a question to the join list, and a disk that
// is a memory card lives longer.
const rememberEvery = 5 * time.Second

// objectsFile is how objects were written to disk last.
type objectsFile struct {
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
	absent := make(map[mesh.ID]time.Duration, len(saved.Absent))
	for _, a := range saved.Absent {
		absent[a.ID] = a.Time
	}
	d.memory.Absences = node.NewAbsences(absent)
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
	if force || now.Sub(d.objects.at) >= rememberEvery {
		d.objects.at = now // also after an error: a full disk is not asked more often
		d.objects.err = d.save()
	}
	return d.objects.err
}

// save writes what this node knows of the others, if that has changed.
func (d *daemon) save() error {
	r := d.gossip.Remember()
	out := state.Remembered{Objects: r.Objects}
	for id, absent := range d.memory.Absences.Save() {
		out.Absent = append(out.Absent, state.Absence{ID: id, Time: absent})
	}
	slices.SortFunc(out.Absent, func(a, b state.Absence) int { return a.ID.Compare(b.ID) })
	for _, h := range r.Highest {
		out.Highest = append(out.Highest, state.Highest(h))
	}
	if reflect.DeepEqual(out, d.objects.saved) {
		return nil
	}
	if err := d.dir.SaveObjects(out); err != nil {
		return err
	}
	d.objects.saved = out
	return nil
}

// forget has the nodes forgotten that have been away for too long.
func (d *daemon) forget(absent []mesh.Record) error {
	for _, r := range absent {
		if err := d.gossip.Forget(r.ID(), r.Sequence); err != nil {
			return fmt.Errorf("forget absent node %s: %w", r.Name, err)
		}
		d.log.Info("node forgotten after a long absence", "name", r.Name, "id", r.ID(), "absent", d.memory.Absences.Of(r.ID()).Truncate(time.Minute))
	}
	return nil
}

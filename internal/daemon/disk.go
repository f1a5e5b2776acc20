// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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

// disk is what this daemon has in the state directory.
type disk struct {
	dir     stateDir
	node    state.Node // as written last
	objects objectsFile
}

// saveNode writes what this node has to stand by after a crash. What others may rely on is
// on disk before it is done or told.
func (d *disk) saveNode(n state.Node) error {
	if err := d.dir.SaveNode(n); err != nil {
		return err
	}
	d.node = n
	return nil
}

// objectsFile is the file of what is known of the others.
type objectsFile struct {
	at    time.Time        // of the last attempt to write it
	err   error            // of the last attempt
	saved state.Remembered // as written last
}

// recall reads the state directory: who this node is, what it has promised, and
// what it knew of the others.
func (d *daemon) recall(machineID string) (gossip.Remembered, error) {
	identity, origin, err := d.disk.dir.Identity(machineID, rand.Reader)
	if err != nil {
		return gossip.Remembered{}, err
	}
	d.self.Identity = identity
	d.log = d.log.With("node", d.cfg.Node.Name)
	d.log.Info("identity", "id", identity.ID(), "origin", origin)
	if d.disk.node, err = d.disk.dir.Node(); err != nil {
		return gossip.Remembered{}, err
	}
	d.settings = inForce(d.cfg.Cluster, d.disk.node.Adopted)
	// A start that is not on disk would let old packets of ours pass for new
	// ones; so a disk that takes nothing is an error here, and only here.
	next := d.disk.node
	next.Boot = nextBoot(next.Boot, time.Now())
	if err := d.disk.saveNode(next); err != nil {
		return gossip.Remembered{}, err
	}
	if d.self.instance, err = newInstance(d.disk.node.Boot, rand.Reader); err != nil {
		return gossip.Remembered{}, err
	}
	return d.recallObjects()
}

// nextBoot numbers a start. The others take no packet of a start that has a lower
// number than one that they have seen; so a node whose count was lost, or put
// back from a backup, must not begin anew. The clock is ahead of any count.
func nextBoot(last uint64, now time.Time) uint64 {
	return max(last+1, uint64(max(now.Unix(), 0)))
}

// newInstance names a start of the daemon: by its number, which rises with the clock,
// and at random. So of two daemons with one identity both know which started later.
func newInstance(boot uint64, random io.Reader) (uint64, error) {
	var b [4]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return 0, fmt.Errorf("draw instance: %w", err)
	}
	return boot<<32 | uint64(binary.BigEndian.Uint32(b[:])), nil
}

// recallObjects reads what this node knew of the others. A damaged file is set
// aside: the others still know all of it.
func (d *daemon) recallObjects() (gossip.Remembered, error) {
	saved, err := d.disk.dir.Objects()
	if errors.Is(err, state.ErrDamaged) {
		aside, asideErr := d.disk.dir.SetAside(state.ObjectsFile)
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
	if force || now.Sub(d.disk.objects.at) >= rememberEvery {
		d.disk.objects.at = now // also after an error: a full disk is not asked more often
		d.disk.objects.err = d.save()
	}
	return d.disk.objects.err
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
	if reflect.DeepEqual(out, d.disk.objects.saved) {
		return nil
	}
	if err := d.disk.dir.SaveObjects(out); err != nil {
		return err
	}
	d.disk.objects.saved = out
	return nil
}

// forgetAbsent has the nodes forgotten that have been away for too long.
func (d *daemon) forgetAbsent(absent []mesh.Record) error {
	for _, r := range absent {
		if err := d.gossip.Forget(r.ID(), r.Sequence); err != nil {
			return fmt.Errorf("forget absent node %s: %w", r.Name, err)
		}
		d.log.Info("node forgotten after a long absence", "name", r.Name, "id", r.ID(), "absent", d.memory.Absences.Of(r.ID()).Truncate(time.Minute))
	}
	return nil
}

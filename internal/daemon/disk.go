// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/state"
)

// saveEvery is the least time between two writes of what is known of the other nodes. If that
// is lost, the nodes of the join list have it; fewer writes spare memory cards.
const saveEvery = 5 * time.Second

// disk is what the state directory holds.
type disk struct {
	dir     stateDir
	node    state.Node // as written last
	objects objectsFile
}

// saveNode writes this node's own state, which must survive a crash: it is on disk before
// other nodes or pods can rely on it.
func (d *disk) saveNode(n state.Node) error {
	if err := d.dir.SaveNode(n); err != nil {
		return err
	}
	d.node = n
	return nil
}

// objectsFile is the file of gossip's objects.
type objectsFile struct {
	at    time.Time        // of the last attempt to write it
	err   error            // of the last attempt
	saved state.Remembered // as written last
}

// loadState reads the state directory: this node's identity and state, and what it knew of the
// other nodes.
func (d *daemon) loadState(machineID string) (gossip.Remembered, error) {
	identity, origin, err := d.disk.dir.Identity(machineID, rand.Reader)
	if err != nil {
		return gossip.Remembered{}, err
	}
	d.self.Identity = identity
	d.log.Info("identity", keyID, identity.ID(), "origin", origin)
	if d.disk.node, err = d.disk.dir.Node(); err != nil {
		return gossip.Remembered{}, err
	}
	// Other nodes tell old packets of ours from new ones by the number of the start. So
	// a full disk is an error here; later it is only a problem.
	next := d.disk.node
	next.Boot = nextBoot(next.Boot, time.Now())
	if err := d.disk.saveNode(next); err != nil {
		return gossip.Remembered{}, err
	}
	if d.self.instance, err = newInstance(d.disk.node.Boot, rand.Reader); err != nil {
		return gossip.Remembered{}, err
	}
	return d.loadObjects()
}

// nextBoot returns the number of this start. Other nodes drop packets with a lower number
// than one they have seen. The clock makes it rise even if the last number was lost or
// restored from a backup.
func nextBoot(last uint64, now time.Time) uint64 {
	return max(last+1, uint64(max(now.Unix(), 0)))
}

// newInstance returns an identifier of this start: its number and a random part. Of two
// daemons with one identity, the one that started later has the higher one.
func newInstance(boot uint64, random io.Reader) (uint64, error) {
	var b [4]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return 0, fmt.Errorf("choose instance: %w", err)
	}
	return boot<<32 | uint64(binary.BigEndian.Uint32(b[:])), nil
}

// loadObjects reads what this node knew of the other nodes. A damaged file is set aside,
// because the other nodes still know all of it.
func (d *daemon) loadObjects() (gossip.Remembered, error) {
	saved, err := d.disk.dir.Objects()
	if errors.Is(err, state.ErrDamaged) {
		aside, asideErr := d.disk.dir.SetAside(state.ObjectsFile)
		if asideErr != nil {
			return gossip.Remembered{}, errors.Join(err, asideErr)
		}
		d.log.Error("the file of remembered nodes is damaged; joining through the join list", "err", err, "kept", aside)
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
	d.memory.Clients = make(map[wgtypes.Key]netip.AddrPort, len(saved.Clients))
	d.memory.Routers.Down = make(map[wgtypes.Key]bool)
	for _, c := range saved.Clients {
		d.memory.Clients[c.Key] = c.Endpoint
		if c.Down {
			d.memory.Routers.Down[c.Key] = true
		}
	}
	r := gossip.Remembered{Objects: saved.Objects}
	for _, h := range saved.Highest {
		r.Highest = append(r.Highest, gossip.Highest(h))
	}
	return r, nil
}

// saveObjects writes what this node knows of the other nodes. Without force it writes once
// every saveEvery, and reports the error of the last attempt in between.
func (d *daemon) saveObjects(now time.Time, force bool) error {
	if force || now.Sub(d.disk.objects.at) >= saveEvery {
		d.disk.objects.at = now // after an error, too: a full disk is not tried more often
		d.disk.objects.err = d.writeObjects()
	}
	return d.disk.objects.err
}

// writeObjects writes what this node knows of the other nodes, if it has changed.
func (d *daemon) writeObjects() error {
	r := d.gossip.Remember()
	out := state.Remembered{Objects: r.Objects}
	for id, absent := range d.memory.Absences.Save() {
		out.Absent = append(out.Absent, state.Absence{ID: id, Time: absent})
	}
	slices.SortFunc(out.Absent, func(a, b state.Absence) int { return a.ID.Compare(b.ID) })
	for key, at := range d.memory.Clients {
		out.Clients = append(out.Clients, state.Client{Key: key, Endpoint: at, Down: d.memory.Routers.Down[key]})
	}
	slices.SortFunc(out.Clients, func(a, b state.Client) int { return slices.Compare(a.Key[:], b.Key[:]) })
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

// forgetAbsent makes all nodes forget those that have been absent for too long.
func (d *daemon) forgetAbsent(absent []mesh.Record) error {
	for _, r := range absent {
		if err := d.gossip.Forget(r.ID(), r.Sequence); err != nil {
			return fmt.Errorf("forget absent node %s: %w", r.Name, err)
		}
		d.log.Info("node forgotten after a long absence", "name", r.Name, keyID, r.ID(), "absent", d.memory.Absences.Of(r.ID()).Truncate(time.Minute))
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// ErrTwin says that another daemon runs with this node's identity, and started
// before this one.
var ErrTwin = errors.New("this node's identity runs on another host, too: " +
	"if this host is a copy of that one, stop meshd here, remove identity.json and node.json from its state directory, and start it: it makes an identity of its own; " +
	"if the other one is the copy, do so there")

// newInstance names a start of the daemon: by its number, which rises with the
// clock, and at random. So of two daemons with one identity both know which
// started later, and only that one gives way.
func newInstance(boot uint64, random io.Reader) (uint64, error) {
	var b [4]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return 0, fmt.Errorf("draw instance: %w", err)
	}
	return boot<<32 | uint64(binary.BigEndian.Uint32(b[:])), nil
}

// nextSequence numbers a record of ours. Where somebody has shown one that we
// don't know to have made, our disk was lost or put back, or a twin runs. Then
// it goes beyond everything that can have been made until now, which tells the
// two apart: whoever replays our old records has none that goes beyond that.
func nextSequence(own, shown uint64, now time.Time) uint64 {
	next := max(own, shown) + 1
	if shown > own {
		next = max(next, uint64(max(now.UnixMilli(), 0)))
	}
	return next
}

const (
	// twinTimes is how often one other instance must have gone beyond a record
	// of ours before it is taken to be running, and twinAfter how long it must go
	// on: what is left over from an instance that was stopped is gone by then.
	twinTimes = 3
	twinAfter = 10 * time.Second
)

// twin is what was met of one other instance of this node.
type twin struct {
	instance uint64
	since    time.Time
	past     uint64 // its last record
	times    int    // that it went beyond a record which we had published
}

// meet takes in a record of ours that is in force; published is the sequence of
// the last one that this instance has published, 0 for none. It says whether
// another instance is sure to be running.
func (w *twin) meet(instance uint64, r mesh.Record, published uint64, now time.Time) bool {
	if r.Instance == instance || published == 0 || r.Sequence <= published {
		return false
	}
	if r.Instance != w.instance {
		*w = twin{instance: r.Instance, since: now}
	}
	if published > w.past {
		w.times++
	}
	w.past = r.Sequence
	return w.times >= twinTimes && now.Sub(w.since) >= twinAfter
}

// giveWay returns ErrTwin if another instance runs and was there before us.
func (d *daemon) giveWay(t turn) error {
	for _, r := range t.view.Records {
		if r.ID() != d.identity.ID() || !d.twin.meet(d.instance, r, d.own.Sequence, t.now) {
			continue
		}
		if d.twin.instance < d.instance {
			return ErrTwin
		}
	}
	return nil
}

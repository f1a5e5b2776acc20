// SPDX-License-Identifier: Apache-2.0

package node

import (
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

const (
	// duplicateTimes is how often another instance must have gone beyond a record of
	// ours before it is taken to be running, and duplicateAfter how long it must go on:
	// what is left over from an instance that was stopped is gone by then.
	duplicateTimes = 3
	duplicateAfter = 10 * time.Second
)

// Duplicate is what was seen of a second daemon that runs with this node's identity. The
// zero value has seen none.
type Duplicate struct {
	instance uint64
	since    time.Time
	past     uint64 // its last record
	times    int    // how often it went beyond a record that we had published
}

// See takes in the record of ours that is in force, and reports whether an instance that
// was started before this one is sure to run. Then this one must stop. Published is our
// record as we published it last; its sequence is 0 if we have not published any yet.
func (d *Duplicate) See(instance uint64, inForce, published mesh.Record, now time.Time) bool {
	return d.runs(instance, inForce, published.Sequence, now) && d.instance < instance
}

// runs reports whether any other instance is sure to run.
func (d *Duplicate) runs(instance uint64, r mesh.Record, published uint64, now time.Time) bool {
	if r.Instance == instance || published == 0 || r.Sequence <= published {
		return false
	}
	if r.Instance != d.instance {
		*d = Duplicate{instance: r.Instance, since: now}
	}
	if published > d.past {
		d.times++
	}
	d.past = r.Sequence
	return d.times >= duplicateTimes && now.Sub(d.since) >= duplicateAfter
}

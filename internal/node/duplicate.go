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

// duplicate is what was seen of a second daemon that runs with this node's identity. The
// zero value has seen none.
type duplicate struct {
	instance uint64
	since    time.Time
	past     uint64 // its last record
	times    int    // how often it went beyond a record that we had published
}

// SawDuplicate reports whether another instance of this node is sure to run that was
// started before this one. Then this one must stop.
func (m *Memory) SawDuplicate(in Input) bool {
	for _, r := range in.View.Records {
		if r.ID() == in.Self.ID() {
			return m.duplicate.runs(in.Self.Instance, r, m.Own.Sequence, in.Now) && m.duplicate.instance < in.Self.Instance
		}
	}
	return false
}

// duplicateGone is how long a node that stopped as a duplicate hears from others, and from
// no other instance, until it uses its device again. A running one shows itself within
// duplicateAfter of the first record.
const duplicateGone = 30 * time.Second

// DuplicateWait returns how long this node has yet to leave the host alone because it
// stopped as a duplicate last. It tells its record meanwhile: an instance that still runs
// contradicts, and this one stops again before it has taken away any traffic.
func (in Input) DuplicateWait() time.Duration {
	wait := listenFirst
	switch {
	case !in.Promise.Duplicate:
		return 0
	case in.View.Merged:
		wait = duplicateGone
	}
	return max(wait-in.Now.Sub(in.Started), 0)
}

// DuplicateProblem says why this node leaves the host alone for now.
func DuplicateProblem(name string) mesh.Problem {
	return mesh.Problem{
		Kind: mesh.ProblemKey, Node: name,
		Text:   "this node's identity ran on another host when meshd stopped here last: it makes sure that it does no longer, before it sets its device up",
		Advice: "wait a minute; if meshd stops again, journalctl -u meshd says what to do",
	}
}

// runs takes in the record of ours that is in force, and reports whether another instance
// is sure to run. Published is the sequence of the record that we published last, 0 for
// none.
func (d *duplicate) runs(instance uint64, r mesh.Record, published uint64, now time.Time) bool {
	if r.Instance == instance || published == 0 || r.Sequence <= published {
		return false
	}
	if r.Instance != d.instance {
		*d = duplicate{instance: r.Instance, since: now}
	}
	if published > d.past {
		d.times++
	}
	d.past = r.Sequence
	return d.times >= duplicateTimes && now.Sub(d.since) >= duplicateAfter
}

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
	// duplicateShown is how long a duplicate is a problem after its last record.
	duplicateShown = 3 * time.Minute
)

// duplicate is what was seen of a second daemon that runs with this node's identity. The
// zero value has seen none.
type duplicate struct {
	instance uint64
	since    time.Time // of its first record
	last     time.Time // of its last record
	past     uint64    // the sequence of its last record
	times    int       // how often it went beyond a record that we had published
	merged   time.Time // when this daemon first heard from others
}

// SawDuplicate reports whether another instance of this node is sure to run that was
// started before this one. Then this one must stop.
func (m *Memory) SawDuplicate(in Input) bool {
	if in.View.Merged && m.duplicate.merged.IsZero() {
		m.duplicate.merged = in.Now
	}
	for _, r := range in.View.Records {
		if r.ID() == in.Self.ID() {
			m.duplicate.look(in.Self.Instance, r, m.Own.Sequence, in.Now)
		}
	}
	return m.duplicate.runs(in.Now) && m.duplicate.instance < in.Self.Instance
}

// duplicateGone is how long a node that stopped as a duplicate hears from others, and from
// no other instance, until it uses its device again. A running one shows itself within
// duplicateAfter of the first record.
const duplicateGone = 30 * time.Second

// DuplicateWait returns how long this node has yet to leave the host alone because it
// stopped as a duplicate last. It tells its record meanwhile: an instance that still runs
// contradicts, and this one stops again before it has taken away any traffic.
func (m *Memory) DuplicateWait(in Input) time.Duration {
	d, end := m.duplicate, in.Started.Add(listenFirst)
	if !in.Promise.Duplicate {
		return 0
	}
	if !d.merged.IsZero() {
		end = d.merged.Add(duplicateGone)
	}
	if seen := d.last.Add(duplicateGone); seen.After(end) {
		end = seen
	}
	return max(end.Sub(in.Now), 0)
}

// DuplicateProblem says why this node leaves the host alone for now.
func DuplicateProblem(name string) mesh.Problem {
	return mesh.Problem{
		Kind: mesh.ProblemDuplicate, Node: name,
		Text:   "this node's identity ran on another host when meshd stopped here last: it makes sure that it does no longer, before it sets its device up",
		Advice: "wait a minute; if meshd stops again, journalctl -u meshd says what to do",
	}
}

// look takes in the record of ours that is in force. Published is the sequence of the record
// that we published last, 0 for none.
func (d *duplicate) look(instance uint64, r mesh.Record, published uint64, now time.Time) {
	if r.Instance == instance || published == 0 || r.Sequence <= published {
		return
	}
	if r.Instance != d.instance {
		*d = duplicate{instance: r.Instance, since: now, merged: d.merged}
	}
	if published > d.past {
		d.times++
	}
	d.past, d.last = r.Sequence, now
}

// runs reports whether another instance is sure to run.
func (d *duplicate) runs(now time.Time) bool {
	return d.times >= duplicateTimes && d.last.Sub(d.since) >= duplicateAfter && now.Sub(d.last) <= duplicateShown
}

// problems reports an instance that runs and does not stop, because it was started later or
// does not hear of this one.
func (d *duplicate) problems(name string, now time.Time) []mesh.Problem {
	if !d.runs(now) {
		return nil
	}
	return []mesh.Problem{{
		Kind: mesh.ProblemDuplicate, Node: name, Text: "records of this node's identity keep coming from another instance",
		Advice: "stop one of them and remove its state directory, so that it gets a new identity",
	}}
}

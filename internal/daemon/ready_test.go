// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

func TestSettled(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	tests := []struct {
		name    string
		ready   bool
		claimed time.Time
		view    mesh.View
		now     time.Time
		want    time.Duration
	}{
		{"has had pods", true, time.Time{}, mesh.View{}, at(0), 0},
		{"first of all", false, at(0), mesh.View{JoinEmpty: true}, at(0), contestable},
		{"first of all, from disk", false, time.Time{}, mesh.View{JoinEmpty: true}, at(contestable), 0},
		{"new", false, at(time.Second), mesh.View{Merged: true}, at(2 * time.Second), contestable - time.Second},
		{"not new", false, at(time.Second), mesh.View{Merged: true}, at(time.Second + contestable), 0},
		{"from disk, nobody heard", false, time.Time{}, mesh.View{}, at(contestable), listenFirst - contestable},
		{"from disk, somebody heard at once", false, time.Time{}, mesh.View{Merged: true}, at(time.Second), contestable - time.Second},
		{"from disk, somebody heard", false, time.Time{}, mesh.View{Merged: true}, at(contestable), 0},
		{"from disk, nobody is there", false, time.Time{}, mesh.View{}, at(listenFirst), 0},
	}
	for _, tt := range tests {
		d := &daemon{started: start, claimed: tt.claimed, node: state.Node{Ready: tt.ready}}
		if got := d.settled(turn{now: tt.now, view: tt.view}); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

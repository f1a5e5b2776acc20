// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/ed25519"
	"maps"
	"reflect"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

const month = 30 * 24 * time.Hour

// three returns records of three nodes by rising fingerprint.
func three() (records []mesh.Record, ids [3]mesh.ID) {
	for i := range byte(3) {
		key := make(ed25519.PublicKey, ed25519.PublicKeySize)
		key[0] = i
		records = append(records, mesh.Record{Identity: key})
	}
	if records[1].ID().Compare(records[0].ID()) < 0 {
		records[0], records[1] = records[1], records[0]
	}
	for i, r := range records {
		ids[i] = r.ID()
	}
	return records, ids
}

func TestAbsences(t *testing.T) {
	records, ids := three()
	lower, higher, gone := ids[0], ids[1], ids[2]
	both := mesh.View{Records: records, Alive: map[mesh.ID]bool{lower: true, higher: true}}
	all := mesh.View{Records: records, Alive: map[mesh.ID]bool{lower: true, higher: true, gone: true}}
	alone := mesh.View{Records: records, Alive: map[mesh.ID]bool{lower: true}, Alone: true}
	tests := []struct {
		name  string
		self  mesh.ID
		steps func(look func(view mesh.View, times int, every time.Duration), restart func())
		want  bool
	}{
		{"at first", lower, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(both, 1, 0)
		}, false},
		{"almost a month", lower, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(both, 30*24*60-1, time.Minute)
		}, false},
		{"a month", lower, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(both, 30*24*60+1, time.Minute)
		}, true},
		{"a month, but somebody comes first", higher, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(both, 30*24*60+1, time.Minute)
		}, false},
		{"nobody has come first", higher, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(both, 30*24*60+11, time.Minute)
		}, true},
		{"back for a moment", lower, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(both, 30*24*60-10, time.Minute)
			look(all, 1, time.Second)
			look(both, 30*24*60-10, time.Minute)
		}, false},
		{"alone for a month", lower, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(alone, 30*24*60+11, time.Minute)
		}, false},
		{"the process was halted for a year", lower, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(both, 2, 365*24*time.Hour)
		}, false},
		{"the clock goes back", lower, func(look func(mesh.View, int, time.Duration), _ func()) {
			look(both, 30*24*60-10, time.Minute)
			look(both, 1, -month)
		}, false},
		{"a month over daily restarts", lower, func(look func(mesh.View, int, time.Duration), restart func()) {
			for range 31 {
				look(both, 24*60, time.Minute)
				restart()
			}
			look(both, 1, 0)
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1_800_000_000, 0)
			a := NewAbsences(nil)
			view := both
			tt.steps(func(v mesh.View, times int, every time.Duration) {
				view = v
				for range times {
					now = now.Add(every)
					a.count(v, tt.self, now)
				}
			}, func() { a = NewAbsences(a.Save()) })
			var want []mesh.Record
			if tt.want {
				want = records[2:]
			}
			if got := a.overdue(view, tt.self, month); !reflect.DeepEqual(got, want) {
				t.Errorf("absent for %v: got %v, want %v", a.of, got, want)
			}
		})
	}
}

// What is on disk changes seldom, and not at all while everybody is there.
func TestAbsencesOnDisk(t *testing.T) {
	records, ids := three()
	a := NewAbsences(nil)
	now := time.Unix(1_800_000_000, 0)
	writes := 0
	var saved map[mesh.ID]time.Duration
	for range 60 {
		now = now.Add(time.Minute)
		a.count(mesh.View{Records: records, Alive: map[mesh.ID]bool{ids[0]: true, ids[1]: true}}, ids[0], now)
		if now := a.Save(); !maps.Equal(now, saved) {
			saved, writes = now, writes+1
		}
	}
	if writes != 5 {
		t.Errorf("in an hour of an absence: got %d different states, want 5", writes)
	}
	a.count(mesh.View{Records: records, Alive: map[mesh.ID]bool{ids[0]: true, ids[1]: true, ids[2]: true}}, ids[0], now)
	if got := a.Save(); len(got) > 0 {
		t.Errorf("everybody is there: got %v, want nothing", got)
	}
}

// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"testing"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// A host that lost its way out says so, unless it reaches others all the same.
func TestUplinkProblems(t *testing.T) {
	lost := turn{view: mesh.View{Alone: true, Records: make([]mesh.Record, 2)}}
	for _, tt := range []struct {
		name   string
		change func(*turn)
		want   int
	}{
		{"lost", func(*turn) {}, 1},
		{"others are reached", func(l *turn) { l.view.Alone = false }, 0},
		{"there is one", func(l *turn) { l.facts.Uplinks = make([]netcfg.Uplink, 1) }, 0},
		{"first of its mesh", func(l *turn) { l.view.Records = l.view.Records[1:] }, 0},
		{"new, with others to join", func(l *turn) {
			l.view.Records, l.cfg.Join = nil, make([]config.HostPort, 1)
		}, 1},
	} {
		l := lost
		tt.change(&l)
		if got := uplinkProblems(l); len(got) != tt.want {
			t.Errorf("%s: got %v, want %d", tt.name, got, tt.want)
		}
	}
}

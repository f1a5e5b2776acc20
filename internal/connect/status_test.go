// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/netcfg"
)

func TestStatusText(t *testing.T) {
	peer := func(name string, services bool, routes ...netip.Prefix) control.ClientPeer {
		return control.ClientPeer{Name: name, ServiceGateway: services, AllowedIPs: routes}
	}
	for _, tt := range []struct {
		want    string
		answers []string
		peers   []control.ClientPeer
	}{
		{"1 of 1 nodes answer", []string{"a"}, []control.ClientPeer{peer("a", false)}},
		{"2 of 3 nodes answer; Services through b", []string{"a", "b"}, []control.ClientPeer{peer("a", false), peer("b", true), peer("c", false)}},
		{"0 of 2 nodes answer; Services through a", nil, []control.ClientPeer{peer("a", true), peer("b", false)}},
		{"2 of 2 nodes answer; Services and the internet through a", []string{"a", "b"}, []control.ClientPeer{peer("a", true, all4, all6), peer("b", false)}},
		{"1 of 2 nodes answer; Services through a; the internet through b", []string{"a"}, []control.ClientPeer{peer("a", true), peer("b", false, all4, all6)}},
		{"1 of 2 nodes answer; Services through a; the internet through a and b", []string{"a"}, []control.ClientPeer{peer("a", true, all4), peer("b", false, all6)}},
		{"1 of 1 nodes answer; the internet through a", []string{"a"}, []control.ClientPeer{peer("a", false, all4)}},
	} {
		got := statusText(control.ClientConfig{Peers: tt.peers}, func(p control.ClientPeer) bool { return slices.Contains(tt.answers, p.Name) })
		if got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// brokenKernel can't be written to.
type brokenKernel struct{ *testClient }

func (brokenKernel) Apply(context.Context, netcfg.Plan) error { return errors.New("no\nnot one") }

// TestStatus: the status follows the nodes, and is told only when it has changed.
func TestStatus(t *testing.T) {
	c := newTestClient(t)
	var told []string
	c.Status = func(text string) { told = append(told, text) }
	c.tellStatus(starting)
	turns := func(n int) {
		for range n {
			for i := range c.state.Peers { // which the fake kernel forgets
				c.state.Peers[i].LastHandshake = c.now
			}
			c.runTurns(1)
		}
	}
	turns(4)
	c.silentNodes[c.normal.Peers[0].Overlay] = true
	turns(4)
	c.silentNodes[c.normal.Peers[1].Overlay], c.silentNodes[spare] = true, true
	turns(4)
	clear(c.silentNodes)
	turns(int(retryEvery/askEvery) + 1)
	c.removed = true
	turns(2)
	c.removed = false
	c.client.kernel = brokenKernel{c}
	c.normal.MTU = 1300
	turns(2)
	want := []string{
		starting,
		"0 of 2 nodes answer; Services through node-0",
		"2 of 2 nodes answer; Services through node-0",
		"1 of 2 nodes answer; Services through node-1",
		"no node answers; the system's own resolver is used until one does; check on a node that meshd client list still shows this client",
		"1 of 2 nodes answer; Services through node-1",
		"2 of 2 nodes answer; Services through node-0",
		"the nodes don't know this client any more: it was removed, or another client has its name or address",
		"set up tunnels: apply plan: no; not one",
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

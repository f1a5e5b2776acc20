// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

func TestClaimWait(t *testing.T) {
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
		{"first of all", false, at(0), mesh.View{JoinEmpty: true}, at(0), ClaimSettlePeriod},
		{"first of all, from disk", false, time.Time{}, mesh.View{JoinEmpty: true}, at(ClaimSettlePeriod), 0},
		{"new", false, at(time.Second), mesh.View{Merged: true}, at(2 * time.Second), ClaimSettlePeriod - time.Second},
		{"not new", false, at(time.Second), mesh.View{Merged: true}, at(time.Second + ClaimSettlePeriod), 0},
		{"from disk, nobody heard", false, time.Time{}, mesh.View{}, at(ClaimSettlePeriod), listenFirst - ClaimSettlePeriod},
		{"from disk, somebody heard at once", false, time.Time{}, mesh.View{Merged: true}, at(time.Second), ClaimSettlePeriod - time.Second},
		{"from disk, somebody heard", false, time.Time{}, mesh.View{Merged: true}, at(ClaimSettlePeriod), 0},
		{"from disk, nobody is there", false, time.Time{}, mesh.View{}, at(listenFirst), 0},
	}
	for _, tt := range tests {
		m := Memory{ClaimedAt: tt.claimed}
		if got := m.claimWait(Input{Now: tt.now, Started: start, Promise: Promise{Ready: tt.ready}, View: tt.view}); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestReadyWait(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	one := mesh.Topology{Neighbors: make([]mesh.Neighbor, 1)}
	for _, tt := range []struct {
		name     string
		ready    bool
		view     mesh.View
		topology mesh.Topology
		after    time.Duration
		want     time.Duration
	}{
		{"restart, others are there", true, mesh.View{}, one, 0, 0},
		{"restart, nobody is there yet", true, mesh.View{}, mesh.Topology{}, time.Second, aloneFor - time.Second},
		{"restart, nobody came", true, mesh.View{}, mesh.Topology{}, aloneFor + time.Second, 0},
		{"restart of the only node", true, mesh.View{JoinEmpty: true}, mesh.Topology{}, 0, 0},
		{"new, others are there", false, mesh.View{Merged: true}, one, time.Second, ClaimSettlePeriod - time.Second},
		{"new, others are not there yet", false, mesh.View{Merged: true}, mesh.Topology{}, time.Second, aloneFor - time.Second},
	} {
		in := Input{Now: start.Add(tt.after), Started: start, Promise: Promise{Ready: tt.ready}, View: tt.view}
		if got := new(Memory).readyWait(in, tt.topology); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestMayPrune(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name  string
		view  mesh.View
		after time.Duration
		want  bool
	}{
		{"at the start", mesh.View{}, 0, false},
		{"nobody was heard for long", mesh.View{}, PruneAfter, true},
		{"somebody was heard", mesh.View{Merged: true}, 0, true},
	} {
		if got := (Input{Now: start.Add(tt.after), Started: start, View: tt.view}).mayPrune(); got != tt.want {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestHasAddresses(t *testing.T) {
	one, two := netip.MustParsePrefix("10.4.0.1/16"), netip.MustParsePrefix("fd00::1/64")
	up := &netcfg.Device{Up: true}
	for _, tt := range []struct {
		name              string
		observed, desired netcfg.State
		want              bool
	}{
		{"all", netcfg.State{Device: up, Addresses: []netip.Prefix{two, one}}, netcfg.State{Addresses: []netip.Prefix{one, two}}, true},
		{"one is missing", netcfg.State{Device: up, Addresses: []netip.Prefix{one}}, netcfg.State{Addresses: []netip.Prefix{one, two}}, false},
		{"no slot yet", netcfg.State{Device: up}, netcfg.State{}, false},
		{"the device is down", netcfg.State{Device: &netcfg.Device{}, Addresses: []netip.Prefix{one}}, netcfg.State{Addresses: []netip.Prefix{one}}, false},
		{"no device", netcfg.State{}, netcfg.State{Addresses: []netip.Prefix{one}}, false},
	} {
		if got := hasAddresses(tt.observed, tt.desired); got != tt.want {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.want)
		}
	}
}

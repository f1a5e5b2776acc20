// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/check"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// TestAddStatus has check learn of servers from the daemon, and how far away they are by
// whatever was measured.
func TestAddStatus(t *testing.T) {
	route, path, gossip := 80*time.Millisecond, 81*time.Millisecond, 82*time.Millisecond
	ms := func(d time.Duration) control.Milliseconds { return control.Milliseconds(d) }
	var o check.Options
	addStatus(&o, control.Status{Peers: []control.Peer{
		{Name: "agent", RTT: ms(gossip)},
		{Name: "a", Etcd: mesh.EtcdLAN, Route: control.Route{RTT: ms(route)}, Path: control.Path{RTT: ms(path)}, RTT: ms(gossip)},
		{Name: "b", Etcd: mesh.EtcdWAN, Path: control.Path{RTT: ms(path)}, RTT: ms(gossip)},
		{Name: "c", Etcd: mesh.EtcdWAN, RTT: ms(gossip)},
	}})
	want := []check.Member{{Node: "a", Timings: mesh.EtcdLAN, RTT: route}, {Node: "b", Timings: mesh.EtcdWAN, RTT: path}, {Node: "c", Timings: mesh.EtcdWAN, RTT: gossip}}
	if diff := cmp.Diff(want, o.Members); diff != "" || !o.Running || o.Nodes != 5 {
		t.Errorf("running %t, %d nodes, members (-want +got):\n%s", o.Running, o.Nodes, diff)
	}
}

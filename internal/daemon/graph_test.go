// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
)

// village is what a member of location a sees: two more nodes there, of which
// the first is the gateway, and one far away.
func village(t *testing.T) turn {
	t.Helper()
	_, records := neighborhood()
	for i := range records {
		r := &records[i]
		r.Key, r.MTU, r.ListenPort = wgtypes.Key{byte(i + 1)}, 1420, 51820
		r.Claim = mesh.Claim{Slot: i, Time: int64(i + 1), Since: 1}
		r.Endpoints = []mesh.Endpoint{{Host: netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}).String(), Port: 51820}}
		if r.Location != "" {
			r.InternalIPs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(i + 1)}), 24)}
		}
	}
	in := mesh.Input{Self: records[2].ID(), Records: records, Cluster: mesh.Cluster{
		Name: "test", Mode: mesh.ModeLocation, Encapsulation: mesh.EncapsulationAlways, Gateways: 1,
		Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, PodPrefix: []int{24},
	}}
	tn := turn{now: time.Unix(1_800_000_000, 0), wanted: node.Configuration{Input: in, Topology: mesh.Derive(in)}}
	tn.cfg.Probe.Misses = 4
	tn.wanted.Settings = netcfg.Settings{Interface: "meshd0", ID: in.Self, ListenPort: 51820, MTU: 1420}
	tn.wanted.Desired = netcfg.Desired(tn.wanted.Topology, tn.wanted.Settings)
	return tn
}

func TestPlanWithout(t *testing.T) {
	var d daemon
	d.publish(control.Status{}, village(t))
	plan, err := d.PlanWithout(t.Context(), "a1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"route to far: lan via a2, was lan via a1"}, plan.Routes); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	plan, err = d.PlanWithout(t.Context(), "far")
	if err != nil || len(plan.Routes) != 0 {
		t.Errorf("without who carries nothing: got %+v and %v, want no change of routes", plan, err)
	}
	for _, node := range []string{"a3", "a", "nobody"} {
		if _, err := d.PlanWithout(t.Context(), node); !errors.Is(err, control.ErrRefused) {
			t.Errorf("without %s: got %v, want a refusal", node, err)
		}
	}
	d.publish(control.Status{}, turn{})
	if _, err := d.Network(t.Context()); !errors.Is(err, control.ErrRefused) {
		t.Errorf("network before the first turn: got %v, want %v", err, control.ErrRefused)
	}
	if _, err := d.Graph(); !errors.Is(err, control.ErrRefused) {
		t.Errorf("graph before the first turn: got %v, want a refusal", err)
	}
}

// TestPlanWithoutLocation has two of three servers of k3s in a location that is lost.
func TestPlanWithoutLocation(t *testing.T) {
	var d daemon
	tn := village(t)
	records := tn.wanted.Input.Records
	for i := range records[:2] {
		records[i].Etcd = mesh.EtcdWAN
	}
	records[3].Etcd = mesh.EtcdWAN
	tn.wanted.Input.Self = records[3].ID()
	tn.wanted.Topology = mesh.Derive(tn.wanted.Input)
	tn.view = mesh.View{Records: records, Alive: make(map[mesh.ID]bool)}
	for _, r := range records {
		tn.view.Alive[r.ID()] = true
	}
	d.publish(control.Status{}, tn)
	for name, want := range map[string]string{
		"a1": "", "a": "etcd loses its quorum, and k3s its API: 1 of 3 servers are left (far), and 2 are needed",
	} {
		if plan, err := d.PlanWithout(t.Context(), name); err != nil || plan.Quorum != want {
			t.Errorf("without %s: got %q, %v, want %q", name, plan.Quorum, err, want)
		}
	}
}

func TestRouteTo(t *testing.T) {
	tn := village(t)
	tn.watch = probe.Choose(probe.ChooseInput{Cluster: tn.wanted.Input.Cluster, Self: tn.wanted.Input.Self, Records: tn.wanted.Input.Records, Topology: tn.wanted.Topology})
	ids := make(map[string]mesh.ID)
	for _, r := range tn.wanted.Input.Records {
		ids[r.Name] = r.ID()
	}
	answered := tn.now.Add(-time.Second)
	tn.results = make(map[probe.Target]probe.Result)
	for _, a := range tn.watch.Targets() {
		switch r := (probe.Result{Answered: answered, RTT: 21 * time.Millisecond}); a.Addr.String() {
		case "10.4.0.1": // a1
			tn.results[a.Target] = r
		case "10.4.0.2":
			r.Misses = 3
			tn.results[a.Target] = r
		case "10.4.0.4": // far
			r.Misses = 4
			tn.results[a.Target] = r
		}
	}
	rtt := control.Milliseconds(21 * time.Millisecond)
	for _, tt := range []struct {
		node string
		want control.Route
	}{
		{"a1", control.Route{Kind: mesh.RouteLAN, Via: []string{}, Health: control.RouteOK, RTT: rtt}},
		{"a2", control.Route{Kind: mesh.RouteLAN, Via: []string{}, Health: control.RouteLosing, RTT: rtt}},
		{"far", control.Route{Kind: mesh.RouteLAN, Via: []string{"a1"}, Health: control.RouteSilent}},
		{"a3", control.Route{Kind: mesh.RouteNone, Via: []string{}}}, // itself
	} {
		if diff := cmp.Diff(tt.want, indexOf(tn).routeTo(ids[tt.node])); diff != "" {
			t.Errorf("route to %s (-want +got):\n%s", tt.node, diff)
		}
	}
}

func TestLocationRole(t *testing.T) {
	tn := village(t)
	roles := func() (out []control.Role) {
		for _, r := range tn.wanted.Input.Records {
			out = append(out, indexOf(tn).locationRole(r))
		}
		return out
	}
	if diff := cmp.Diff([]control.Role{control.RoleMember, control.RoleMember, control.RoleMember, ""}, roles()); diff != "" {
		t.Errorf("before anybody has said anything (-want +got):\n%s", diff)
	}
	tn.wanted.Input.Records = slices.Clone(tn.wanted.Input.Records)
	tn.wanted.Input.Records[0].Term.Since = 1
	tn.wanted.Input.Records[1].Gateway = mesh.GatewayNever
	if diff := cmp.Diff([]control.Role{control.RoleGateway, control.RoleNever, control.RoleMember, ""}, roles()); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
	tn.wanted.Input.Verdicts = []mesh.Verdict{
		{Author: tn.wanted.Input.Records[1].Identity, Subject: tn.wanted.Input.Records[0].ID(), State: mesh.HealthDown, Epoch: 1},
		{Author: tn.wanted.Input.Records[2].Identity, Subject: tn.wanted.Input.Records[2].ID(), State: mesh.HealthDraining, Epoch: 1},
	}
	if diff := cmp.Diff([]control.Role{control.RoleDown, control.RoleNever, control.RoleDraining, ""}, roles()); diff != "" {
		t.Errorf("after verdicts (-want +got):\n%s", diff)
	}
	tn.wanted.Input.Cluster.Mode = mesh.ModeFull
	if diff := cmp.Diff([]control.Role{"", "", "", ""}, roles()); diff != "" {
		t.Errorf("in mode full (-want +got):\n%s", diff)
	}
	for i := range 2 {
		tn.wanted.Input.Records[i].AllowedLocationIPs = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}
	}
	if diff := cmp.Diff([]control.Role{control.RoleDown, "", "", ""}, roles()); diff != "" {
		t.Errorf("in mode full, with a network behind two nodes (-want +got):\n%s", diff)
	}
}

func TestSwept(t *testing.T) {
	a, b := netip.MustParseAddr("10.4.0.1"), netip.MustParseAddr("fd00:4::1")
	rtt := map[netip.Addr]time.Duration{a: time.Millisecond, b: 2 * time.Millisecond}
	for _, tt := range []struct {
		addrs  []netip.Addr
		health control.Health
		rtt    time.Duration
	}{
		{nil, "", 0},
		{[]netip.Addr{a, b}, control.RouteOK, 2 * time.Millisecond},
		{[]netip.Addr{a, netip.MustParseAddr("fd00:4::2")}, control.RouteSilent, 0},
	} {
		if health, slowest := routeHealth(tt.addrs, rtt); health != tt.health || slowest != tt.rtt {
			t.Errorf("%v: got %s, %v, want %s, %v", tt.addrs, health, slowest, tt.health, tt.rtt)
		}
	}
}

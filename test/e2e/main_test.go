// SPDX-License-Identifier: Apache-2.0

// Package e2e tests meshd from outside: its executable, on the hosts of a
// [lab.Lab], with real WireGuard, nft, netlink and CNI plugins. A test observes a
// daemon only through its commands and the host's kernel.
//
// The executable is the one in the variable MESHD, or one built from the tree. When a
// test fails, the daemons' logs are printed.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// binary is the meshd under test.
var binary = os.Getenv("MESHD")

func TestMain(m *testing.M) {
	lab.Main()
	if binary == "" {
		var err error
		if binary, err = build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func build() (string, error) {
	path, err := filepath.Abs("../../bin/meshd")
	if err != nil {
		return "", fmt.Errorf("find bin: %w", err)
	}
	if out, err := exec.Command("go", "build", "-o", path, "../../cmd/meshd").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build meshd: %w: %s", err, out)
	}
	return path, nil
}

// Limits only distinguish slow from never, unless a test says otherwise.
const (
	testLimit   = 20 * time.Minute
	settleLimit = 5 * time.Minute
	pingLimit   = 3 * time.Minute
)

// onUnderlays runs a test once on each of the underlays.
func onUnderlays(t *testing.T, test func(t *testing.T, u lab.Underlay)) {
	t.Parallel()
	for _, u := range underlays {
		t.Run(string(u), func(t *testing.T) {
			t.Parallel()
			test(t, u)
		})
	}
}

// testbed is a lab whose hosts all have meshd and the same secret.
type testbed struct {
	t      *testing.T
	ctx    context.Context
	lab    *lab.Lab
	nodes  []*lab.Node
	secret string
}

// newMesh makes the nodes a, b, c and so on. Each is configured to join the first
// one; no daemon runs yet.
func newMesh(t *testing.T, u lab.Underlay, count int) *testbed {
	t.Helper()
	m := newTestbed(t)
	var names []string
	for i := range count {
		names = append(names, string(rune('a'+i)))
	}
	var err error
	if m.nodes, err = m.lab.Nodes(m.ctx, binary, u, names...); err != nil {
		t.Fatal(err)
	}
	if m.secret, err = m.nodes[0].Run(m.ctx, "cat", lab.SecretPath); err != nil {
		t.Fatal(err)
	}
	return m
}

// newTestbed makes a lab without nodes.
func newTestbed(t *testing.T) *testbed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	l, err := lab.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := &testbed{t: t, ctx: ctx, lab: l}
	t.Cleanup(func() {
		m.printLogs()
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return m
}

// settledMesh makes a mesh whose nodes have all started and see each other.
func settledMesh(t *testing.T, u lab.Underlay, count int) *testbed {
	t.Helper()
	m := newMesh(t, u, count)
	m.start(m.nodes...)
	m.settle(settleLimit, m.nodes...)
	return m
}

// in returns the mesh for use in a subtest.
func (m *testbed) in(t *testing.T) *testbed {
	sub := *m
	sub.t = t
	return &sub
}

func (m *testbed) printLogs() {
	if !m.t.Failed() {
		return
	}
	for _, n := range m.nodes {
		if n.PID() != 0 {
			m.printState(n)
		}
		m.t.Logf("log of %s:\n%s", n.Name, n.Log())
	}
}

// printState prints what a person would look at first on a node that fails.
func (m *testbed) printState(n *lab.Node) {
	ctx, cancel := context.WithTimeout(context.Background(), pingLimit)
	defer cancel()
	for _, command := range []string{
		binary + " status", binary + " plan", "ip route", "ip -s -d link show type tun", "ip -s -d link show type wireguard",
		"ip -s -d link show type vxlan", "bridge fdb show", "nft list table inet meshd", "wg show " + device + " endpoints", "wg show " + device + " allowed-ips",
	} {
		words := strings.Fields(command)
		out, err := n.Run(ctx, words[0], words[1:]...)
		m.t.Logf("%s# %s %v\n%s", n.Name, command, err, out)
	}
}

func (m *testbed) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *testbed) run(h interface {
	Run(ctx context.Context, name string, args ...string) (string, error)
}, name string, args ...string,
) string {
	m.t.Helper()
	out, err := h.Run(m.ctx, name, args...)
	m.must(err)
	return out
}

// start starts the daemons all at once.
func (m *testbed) start(nodes ...*lab.Node) {
	m.t.Helper()
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(n.Start)
	}
	m.must(g.Wait())
}

// settle waits until all nodes see each other as alive, and returns each node's own
// entry in its status.
func (m *testbed) settle(limit time.Duration, nodes ...*lab.Node) []control.Status {
	m.t.Helper()
	what := fmt.Sprintf("ready with %d live peers", len(nodes)-1)
	return m.await(limit, what, lab.Sees(len(nodes)-1), nodes...)
}

// await waits until the condition holds for the status of every node.
func (m *testbed) await(limit time.Duration, what string, ok func(control.Status) bool, nodes ...*lab.Node) []control.Status {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.ctx, limit)
	defer cancel()
	all := make([]control.Status, len(nodes))
	g, ctx := errgroup.WithContext(ctx)
	for i, n := range nodes {
		g.Go(func() (err error) {
			all[i], err = n.Await(ctx, what, ok)
			return err
		})
	}
	m.must(g.Wait())
	return all
}

// connected pings every node from every other one at its overlay address and, if the
// underlay does not route that, at its internal IP.
func (m *testbed) connected(limit time.Duration, nodes ...*lab.Node) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.ctx, limit)
	defer cancel()
	addrs := map[*lab.Node][]netip.Addr{}
	for i, s := range m.await(limit, "ready", lab.Ready, nodes...) {
		n := nodes[i]
		addrs[n] = s.Node.Overlay
		if n.Address() != n.Public() {
			addrs[n] = append(addrs[n], n.Address())
		}
	}
	m.must(lab.AwaitEachOther(ctx, nodes, func(n *lab.Node) []netip.Addr { return addrs[n] }))
}

// addresses returns the overlay addresses and pod CIDRs of nodes, which must all be
// different.
func addresses(t *testing.T, all []control.Status) []string {
	t.Helper()
	var list []string
	for _, s := range all {
		for _, a := range s.Node.Overlay {
			list = append(list, a.String())
		}
		for _, p := range s.Node.PodCIDRs {
			list = append(list, p.String())
		}
	}
	sorted := slices.Sorted(slices.Values(list))
	if len(slices.Compact(sorted)) != len(list) {
		t.Errorf("addresses: got %v, want no two the same", list)
	}
	return list
}

// eventually polls until check returns nil.
func (m *testbed) eventually(limit time.Duration, check func() error) {
	m.t.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(began) > limit || m.ctx.Err() != nil {
			m.t.Fatal(errors.Join(err, m.ctx.Err()))
		}
		time.Sleep(lab.Pause(50*time.Millisecond, began))
	}
}

// device is the name of meshd's WireGuard device.
const device = "meshd0"

// hostState returns what is configured on a host, as a person would see it, without what
// changes by itself.
func (m *testbed) hostState(h *lab.Host) map[string]string {
	m.t.Helper()
	state := map[string]string{}
	for _, command := range []string{
		"ip -br link", "ip -br address", "ip -4 route show table all", "ip -6 route show table all",
		"ip rule", "ip -6 rule", "nft -s list ruleset", "ls " + lab.ConfDir,
	} {
		words := strings.Fields(command)
		out, err := h.Run(m.ctx, words[0], words[1:]...)
		if err != nil && words[0] != "ls" {
			m.t.Fatal(err)
		}
		out = operational.ReplaceAllString(out, "$1 ")
		out = later.ReplaceAllString(out, "")
		state[command] = relayTable.ReplaceAllString(out, "")
	}
	return state
}

// later matches what the kernel adds or removes by itself, partly only seconds after a
// link is up: link-local addresses and their routes, and the lack of a carrier.
var later = regexp.MustCompile(`(?m)^(local |multicast |anycast )?(fe80:|ff00:).*\n|fe80:[0-9a-f:]+/64 |NO-CARRIER,`)

// relayTable matches what the kernel forwards for a relay, which changes with each handshake.
var relayTable = regexp.MustCompile(`(?ms)^table netdev meshd \{.*?^\}\n`)

// operational matches a link's name and operational state, which follows its carrier
// with a delay.
var operational = regexp.MustCompile(`(?m)^(\S+) +(?:UNKNOWN|DOWN|UP|LOWERLAYERDOWN) +`)

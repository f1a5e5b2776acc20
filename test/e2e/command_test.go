// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

func TestStatusAndPlan(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	m.connected(pingLimit, m.nodes...)
	n := m.nodes[0]

	var s control.Status
	m.must(json.Unmarshal([]byte(m.run(n, binary, "status", "-o", "json")), &s))
	if s.Node.Name != n.Name || !lab.Sees(2)(s) {
		t.Errorf("status: got %+v, want two live peers of %s", s, n.Name)
	}
	for _, want := range []string{"b", "c", s.Node.Overlay[0].String()} {
		if got := m.run(n, binary, "status"); !strings.Contains(got, want) {
			t.Errorf("status: got %s, want %q in it", got, want)
		}
	}
	for _, want := range []string{s.Peers[0].Overlay[0].String(), s.Peers[0].ID.String(), device} {
		if got := m.run(n, binary, "status", "-o", "wide"); !strings.Contains(got, want) {
			t.Errorf("wide status: got %s, want %q in it", got, want)
		}
	}
	m.eventually(settleLimit, func() error {
		_, err := n.Run(m.ctx, binary, "status", "--probe", "--check")
		return err
	})
	for _, tt := range []struct{ want, args string }{
		{"b\nc\n:4\n", "__complete forget "},
		{s.Node.Overlay[0].String() + "\n", "ip -4"},
		{s.Peers[0].Overlay[0].String() + "\n", "ip " + s.Peers[0].Name},
		{s.Peers[0].Overlay[0].String() + " is the overlay address of the node " + s.Peers[0].Name + ".\n", "whois " + s.Peers[0].Overlay[0].String()},
	} {
		if got := m.run(n, binary, strings.Split(tt.args, " ")...); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.args, got, tt.want)
		}
	}
	m.refused(n, "ip", "nobody")
	m.reported(n, s)
	if s.Device.Name != device || s.Device.Implementation == "" {
		t.Errorf("device: got %+v, want %s and who implements it", s.Device, device)
	}
	m.eventually(settleLimit, func() error {
		var p control.Plan
		m.must(json.Unmarshal([]byte(m.run(n, binary, "plan", "-o", "json")), &p))
		if len(p.Changes) > 0 {
			return fmt.Errorf("plan of a settled node: got %q, want none", p.Changes)
		}
		return nil
	})
}

// reported makes a report of a fault, and looks for secrets in it.
func (m *testbed) reported(n *lab.Node, s control.Status) {
	m.t.Helper()
	file := filepath.Join(m.t.TempDir(), "report.tar.gz")
	m.run(n, binary, "bugreport", "--out", file)
	text := m.run(n, "tar", "-xOzf", file)
	for _, want := range []string{s.Peers[0].ID.String(), "rttMilliseconds", "Nothing to change.", "graph meshd {", device + ":"} {
		if !strings.Contains(text, want) {
			m.t.Errorf("the report does not have %q", want)
		}
	}
	secrets := regexp.MustCompile(`"(?:ed25519-seed|[a-z-]*private-key)": *"([^"]+)"`).FindAllStringSubmatch(m.run(n, "sh", "-c", "cat "+lab.StateDir+"/identity.json /run/meshd/path.json"), -1)
	if len(secrets) != 3 {
		m.t.Fatalf("%d secrets in the state of %s, want 3", len(secrets), n.Name)
	}
	for _, secret := range append(secrets, []string{"", m.secret}) {
		if strings.Contains(text, secret[1]) {
			m.t.Errorf("the report has the secret %s", secret[1])
		}
	}
}

func TestForget(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	gone, rest := m.nodes[2], m.nodes[:2]
	m.must(gone.Kill())
	m.await(settleLimit, "aware of one dead peer", lab.Sees(1), rest...)
	m.run(rest[0], binary, "forget", gone.Name)
	m.await(settleLimit, "rid of the forgotten node", func(s control.Status) bool { return len(s.Peers) == 1 }, rest...)
	m.connected(pingLimit, rest...)

	// The slot is free for the next node, and stays with that node even if the old one
	// returns with its earlier claim.
	slot := func(n *lab.Node) int {
		s, err := n.Status(m.ctx)
		m.must(err)
		return s.Node.Slot
	}
	taken := slot(rest[1])
	m.must(rest[1].Kill())
	m.await(settleLimit, "aware of a dead peer", lab.Sees(0), rest[0])
	m.run(rest[0], binary, "forget", rest[1].Name)
	podCIDR := fmt.Sprintf("  pod-cidr: [10.42.%d.0/24]", taken)
	m.must(gone.Configure(lab.Config(gone.Name, []string{rest[0].Public().String()}, podCIDR), m.secret))
	m.run(gone, "rm", "-r", lab.StateDir)
	m.must(gone.Start())
	m.await(settleLimit, "ready on the freed slot", func(s control.Status) bool { return s.Node.Ready && s.Node.Slot == taken }, gone)
	m.must(rest[1].Start())
	m.await(settleLimit, "on another slot, since nothing runs there", all(lab.Ready, func(s control.Status) bool { return s.Node.Slot != taken }, lacks(mesh.ProblemSlot)), rest[1])
	m.connected(pingLimit, rest[0], gone, rest[1])
}

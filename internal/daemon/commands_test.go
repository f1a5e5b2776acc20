// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

// within runs a test of a node that has met others.
func within(t *testing.T, config string, others func(*world) []mesh.Record, test func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, config)
		settled(w, others(w)...)
		test(t, w)
		w.end()
	})
}

func b1AndC1(w *world) []mesh.Record { return []mesh.Record{w.b1(), w.c1()} }

// TestCommandsLook runs all commands that change nothing.
func TestCommandsLook(t *testing.T) {
	within(t, standsAlone, b1AndC1, func(t *testing.T, w *world) {
		s := w.d.Status()
		if len(s.Peers) != 2 || !s.Peers[0].Alive || s.Peers[0].LastHandshake.IsZero() || !s.Node.Ready || s.Device.Name != "meshd0" || s.Reconcile.Error != "" {
			t.Errorf("status: got %+v", s)
		}
		plan, err := w.d.Plan(t.Context())
		if err != nil || len(plan.Changes) > 0 {
			t.Errorf("plan on a host that is as it should be: got %q, %v", plan.Changes, err)
		}
		w.kernel.change(func(k *fakeKernel) { k.kernel.Addresses = nil })
		plan, err = w.d.Plan(t.Context())
		if want := []string{"+ addr 10.4.0.1/32 dev meshd0"}; err != nil || !slices.Equal(plan.Changes, want) {
			t.Errorf("plan when an address is gone: got %q, %v, want %q", plan.Changes, err, want)
		}
		graph, err := w.d.Graph()
		if err != nil || len(graph.Nodes) != 3 {
			t.Errorf("graph: got %+v, %v, want three nodes", graph, err)
		}
		network, err := w.d.Network(t.Context())
		if err != nil || network.Alive != 2 || network.Port != 51820 || network.Hairpin != control.Unknown {
			t.Errorf("network: got %+v, %v, want two nodes that are alive", network, err)
		}
		probed, err := w.d.Probe(t.Context())
		if err != nil || probed.Peers[1].Route.Health != control.RouteOK || probed.Peers[1].Route.RTT.Duration() != time.Millisecond {
			t.Errorf("probe: got %+v, %v", probed.Peers, err)
		}
	})
}

// TestPlanWithoutGateway: a node that loses its gateway gets a tunnel of its own.
func TestPlanWithoutGateway(t *testing.T) {
	within(t, inLocation, memberOfA, func(t *testing.T, w *world) {
		got, err := w.d.PlanWithout(t.Context(), "a2")
		if err != nil || !strings.Contains(strings.Join(got.Changes, "\n"), " (b1) endpoint 203.0.113.11:51820") {
			t.Errorf("changes: got %q, %v", got.Changes, err)
		}
		if want := []string{"route to b1: tunnel, was lan via a2"}; !slices.Equal(got.Routes, want) {
			t.Errorf("routes: got %q, want %q", got.Routes, want)
		}
	})
}

// TestUnderlayOfPeers: the status has the addresses from which packets of the others come, for
// meshd check.
func TestUnderlayOfPeers(t *testing.T) {
	addresses := func(w *world) string {
		var all []string
		for _, p := range w.d.Status().Peers {
			all = append(all, fmt.Sprintf("%s %v %v", p.Name, p.Candidates, p.LANAddress))
		}
		return strings.Join(all, ", ")
	}
	within(t, inLocation, memberOfA, func(t *testing.T, w *world) {
		if got, want := addresses(w), "a2 [] 192.168.1.2, a3 [] 192.168.1.3, b1 [] invalid IP"; got != want {
			t.Errorf("member of a location: got %s, want %s", got, want)
		}
	})
	within(t, standsAlone, b1AndC1, func(t *testing.T, w *world) {
		if got, want := addresses(w), "b1 [203.0.113.11:51820] invalid IP, c1 [203.0.113.12:51820] invalid IP"; got != want {
			t.Errorf("node with tunnels: got %s, want %s", got, want)
		}
	})
}

// TestCommandsRefused runs commands that must be refused.
func TestCommandsRefused(t *testing.T) {
	within(t, standsAlone, b1AndC1, func(t *testing.T, w *world) {
		_, revokeSelf := w.d.Revoke(t.Context(), "a1")
		_, revokeNobody := w.d.Revoke(t.Context(), "z9")
		_, withoutSelf := w.d.PlanWithout(t.Context(), "a1")
		_, withoutNobody := w.d.PlanWithout(t.Context(), "z9")
		_, renumber := w.d.Renumber(t.Context(), false)
		_, noClient := w.d.ClientConfig("laptop")
		for what, err := range map[string]error{
			"forget a1": w.d.Forget(t.Context(), "a1"), "forget b1, which is alive": w.d.Forget(t.Context(), "b1"), "forget z9": w.d.Forget(t.Context(), "z9"),
			"revoke a1": revokeSelf, "revoke z9": revokeNobody, "plan without a1": withoutSelf, "plan without z9": withoutNobody,
			"renumber for no reason": renumber, "client that is not there": noClient,
		} {
			if !errors.Is(err, control.ErrRefused) {
				t.Errorf("%s: got %v, want %v", what, err, control.ErrRefused)
			}
		}
		drained, err := w.d.Drain(t.Context(), false)
		if want := "This node is not a gateway: there are none in mode full."; err != nil || drained.Text != want {
			t.Errorf("drain: got %q, %v, want %q", drained.Text, err, want)
		}
		for _, changed := range []string{`^disk\.`, `^network\.`, `^kernel\.(Apply|InitiateHandshake)`} {
			if found := find(w.all(), changed); len(found) > 0 {
				t.Errorf("%s: %v", found[0].title, found[0].effects)
			}
		}
	})
}

// TestRevoke revokes a node, and a fingerprint that nobody knows.
func TestRevoke(t *testing.T) {
	within(t, standsAlone, b1AndC1, func(t *testing.T, w *world) {
		b1, unknown := w.b1().ID(), mesh.ID{7}
		for name, want := range map[string]control.Revoked{"b1": {ID: b1, Name: "b1"}, unknown.String(): {ID: unknown}} {
			if got, err := w.d.Revoke(t.Context(), name); err != nil || got != want {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
		}
		w.pass(resync)
		if s := w.d.Status(); len(s.Peers) != 1 || s.Peers[0].Name != "c1" {
			t.Errorf("peers: got %+v, want c1", s.Peers)
		}
		if pruned := find(w.all(), `^kernel\.Apply.* -peer`); len(pruned) != 1 {
			t.Errorf("the revoked node's tunnel is taken away in %d turns, want 1", len(pruned))
		}
	})
}

// TestClientIsTold: a client that asks gets the same configuration as the command prints,
// and a stranger none.
func TestClientIsTold(t *testing.T) {
	within(t, standsAlone, b1AndC1, func(t *testing.T, w *world) {
		w.addClient()
		w.pass(resync)
		want, err := w.d.ClientConfig("laptop")
		if err != nil {
			t.Fatal(err)
		}
		asker := connect.Requester{Key: wgtypes.Key{5}, Addr: want.Overlay[0]}
		got, ok := w.d.configOf(asker)
		if !ok || got.ID != want.ID || len(got.Peers) != len(want.Peers) || !w.d.isClientAddress(asker.Addr) {
			t.Errorf("got %+v, %t, want %+v", got, ok, want)
		}
		b1 := w.b1()
		asker.Silent = []string{b1.Key.String()}
		if got, ok = w.d.configOf(asker); !ok || slices.ContainsFunc(got.Peers, func(p control.ClientPeer) bool { return p.ServiceGateway && p.ID == b1.ID() }) {
			t.Errorf("with b1 silent: got %+v, %t", got.Peers, ok)
		}
		w.meet(w.node("d1", 5, "203.0.113.13"))
		if later, ok := w.d.configOf(asker); !ok || len(later.Peers) <= len(got.Peers) {
			t.Errorf("after a node has appeared: got %+v, %t, want a peer more", later.Peers, ok)
		}
		asker.Addr = netip.MustParseAddr("10.4.0.1")
		if _, ok = w.d.configOf(asker); ok || w.d.isClientAddress(asker.Addr) {
			t.Error("somebody is taken for a client at a node's address")
		}
	})
}

// TestBeforeTheFirstTurn: a daemon that has only just started knows nothing yet.
func TestBeforeTheFirstTurn(t *testing.T) {
	d := newDaemon(Options{Logger: slog.New(slog.DiscardHandler)}, config.Config{})
	_, graph := d.Graph()
	_, drain := d.Drain(t.Context(), false)
	_, client := d.ClientConfig("laptop")
	for what, err := range map[string]error{"graph": graph, "drain": drain, "client": client} {
		if !errors.Is(err, control.ErrRefused) {
			t.Errorf("%s: got %v, want %v", what, err, control.ErrRefused)
		}
	}
}

// TestDamagedObjects: a damaged file of objects is set aside, and the daemon starts. A file
// that can't be read is an error.
func TestDamagedObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, standsAlone)
		w.disk.damaged = state.ErrDamaged
		w.start()
		if len(find(w.all()[:1], `^disk\.SetAside +`+state.ObjectsFile)) != 1 {
			t.Errorf("got %v, want %s set aside", w.all()[0].effects, state.ObjectsFile)
		}
		w.end()
		w.disk.damaged = errors.New("permission denied")
		if got, err := w.d.loadObjects(); err == nil || len(got.Objects) > 0 {
			t.Errorf("got %v, %v, want an error", got, err)
		}
	})
}

// TestVerdictBeyondForgottenOnes: a verdict on a node that was forgotten and came back has
// a higher epoch than those before.
func TestVerdictBeyondForgottenOnes(t *testing.T) {
	within(t, inLocation, gatewayOfA, func(t *testing.T, w *world) {
		w.network.change(func(*mesh.View) { w.network.said = 6 })
		drain(w, false)
		if len(find(w.all(), `^network\.PublishVerdict +a1 is draining, epoch 7`)) != 1 {
			t.Errorf("got:\n%v", w.trace)
		}
	})
}

// TestServersThatCannotListen: a port that is in use is a problem, and stops nothing else.
func TestServersThatCannotListen(t *testing.T) {
	within(t, standsAlone, b1AndC1, func(t *testing.T, w *world) {
		taken := errors.New("address already in use")
		_ = w.d.inLoop(t.Context(), func() {
			w.d.servers.metrics = &fakeHTTP{trace: w.trace, name: "metricsServer", err: taken}
			w.d.servers.clients = &fakeHTTP{trace: w.trace, name: "clientServer", err: taken}
		})
		w.pass(resync)
		var kinds []mesh.ProblemKind
		for _, p := range w.d.Status().Problems {
			kinds = append(kinds, p.Kind)
		}
		if want := []mesh.ProblemKind{ProblemMetrics, ProblemAnswer}; !slices.Equal(kinds, want) || w.d.Status().Reconcile.Error != "" {
			t.Errorf("problems: got %v, want %v", kinds, want)
		}
	})
}

// TestWritesAreSeen: a command that changes something is answered when the others see the
// change.
func TestWritesAreSeen(t *testing.T) {
	within(t, standsAlone, b1AndC1, func(t *testing.T, w *world) {
		request := control.ClientRequest{Name: "laptop", PublicKey: wgtypes.Key{5}.String(), Access: []string{"pods"}}
		if _, err := w.d.AddClient(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		if _, err := w.d.ClientConfig("laptop"); err != nil {
			t.Errorf("the client was added: got %v", err)
		}
		if _, err := w.d.RemoveClient(t.Context(), "laptop"); err != nil {
			t.Fatal(err)
		}
		if s := w.d.Status(); len(s.Clients) > 0 {
			t.Errorf("the client was removed: got %+v", s.Clients)
		}
	})
}

// TestCommandAfterTheLoop: a command does not wait for a loop that has ended.
func TestCommandAfterTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, standsAlone)
		w.start()
		w.end()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.d.Renumber(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

// TestUndoOfADrain: a drain can be undone where the node is not a gateway for lack of other
// nodes, so that it may be one again when they are back.
func TestUndoOfADrain(t *testing.T) {
	within(t, inLocation, gatewayOfA, func(t *testing.T, w *world) {
		drain(w, false)
		a2 := w.beside("a2", 1, mesh.GatewayTerm{}).ID()
		w.hear(func(v *mesh.View) {
			delete(v.Alive, a2)
			v.Records = slices.DeleteFunc(slices.Clone(v.Records), func(r mesh.Record) bool { return r.ID() == a2 })
		})
		got, err := w.d.Drain(t.Context(), true)
		if want := "This node is not draining. This node is not a gateway: no other node is on the private network of location a."; err != nil || got.Draining || got.Text != want {
			t.Errorf("got %+v, %v, want %q", got, err, want)
		}
		w.meet(w.beside("a2", 1, mesh.GatewayTerm{}))
		w.pass(resync)
		if role := w.d.Status().Node.Role; role != control.RoleMember {
			t.Errorf("role when the other node is back: got %s, want %s", role, control.RoleMember)
		}
	})
}

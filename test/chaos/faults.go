// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

// suffer runs the events of a round: each begins and passes.
func (t *town) suffer(ctx context.Context, events []event) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, e := range events {
		g.Go(func() error {
			if err := wait.Sleep(ctx, e.at); err != nil {
				return err
			}
			t.note("%s begins", e)
			pass, err := t.begin(ctx, e)
			if err != nil {
				return fmt.Errorf("%s: %w", e, err)
			}
			if err := wait.Sleep(ctx, e.lasts); err != nil {
				return err
			}
			if pass != nil {
				if err := pass(); err != nil {
					return fmt.Errorf("%s passes: %w", e, err)
				}
			}
			t.note("%s has passed", e)
			return nil
		})
	}
	return g.Wait()
}

// begin begins an event, and returns a function that ends it, nil if none is needed.
func (t *town) begin(ctx context.Context, e event) (pass func() error, err error) {
	var n, other *lab.Node
	if len(e.targets) > 0 {
		n = t.nodes[e.targets[0]]
	}
	if len(e.targets) > 1 {
		other = t.nodes[e.targets[1]]
	}
	restored := func() error { return n.Restore(ctx) }
	run := func(script string) error {
		_, err := n.Run(ctx, "sh", "-c", script)
		return err
	}
	switch e.kind {
	case kill:
		return n.Start, n.Kill()
	case restart:
		return n.Start, n.Stop()
	case power:
		return func() error { return t.boot(ctx, n) }, errors.Join(n.Cut(ctx), n.Kill(), run(forgetAll))
	case unplugged:
		return restored, n.Cut(ctx)
	case noLAN:
		return restored, n.CutLAN(ctx)
	case noWAN:
		return restored, n.CutWAN(ctx)
	case pair:
		return t.heal(ctx), t.lab.Partition(ctx, []*lab.Host{n.Host}, []*lab.Host{other.Host})
	case sites:
		if n.Location() == other.Location() {
			return nil, nil
		}
		return t.heal(ctx), t.lab.Partition(ctx, t.hosts(n.Location()), t.hosts(other.Location()))
	case noUDP, deafUDP:
		what := lab.Packets{Protocol: "udp"}
		if e.amount == 1 {
			what.Port = 51820
		}
		one, two := []*lab.Host{n.Host}, []*lab.Host{other.Host}
		err := t.lab.Block(ctx, one, two, what)
		if e.kind == noUDP {
			err = errors.Join(err, t.lab.Block(ctx, two, one, what))
		}
		return t.heal(ctx), err
	case noRelay:
		return t.killRelay(ctx)
	case deaf:
		addrs := fmt.Sprintf("%s, %s", other.Address(), other.Public())
		return func() error { return run("nft delete table ip chaos") }, run(
			"nft 'table ip chaos { chain input { type filter hook prerouting priority -400; ip saddr { " + addrs + " } drop; }; }'")
	case loss:
		return func() error { return n.Impair(ctx, "loss 0%") }, n.Impair(ctx, fmt.Sprintf("loss %d%%", e.amount))
	case delay:
		return func() error { return n.Impair(ctx, "loss 0%") }, n.Impair(ctx, fmt.Sprintf("delay %dms %dms", e.amount, e.amount/3))
	case noRoutes:
		return nil, run("ip route flush proto 77; ip -6 route flush proto 77")
	case noRules:
		return nil, run("nft delete table inet meshd || true")
	case noDevice:
		return nil, run("ip link delete meshd0 || true")
	case fullDisk:
		return func() error { return run("rm " + lab.StateDir + "/fill") }, run("cat /dev/zero > " + lab.StateDir + "/fill || true")
	case newSecret:
		return nil, t.rollSecret(ctx)
	case otherMode:
		return func() error { return t.rewrite(ctx) }, t.changeMode(ctx, n, []mesh.Mode{mesh.ModeFull, mesh.ModeLocation, mesh.ModeCross}[e.amount-1])
	case newcomer:
		return func() error { return t.leave(ctx, n) }, errors.Join(t.configure(t.ninth), t.ninth.Start())
	case clockMoved:
		by := time.Duration(e.amount-3600) * time.Second
		return func() error { return lab.MoveClock(-by) }, lab.MoveClock(by)
	}
	return nil, fmt.Errorf("unknown kind of fault %q", e.kind)
}

// forgetAll removes what a kernel does not have after a boot. The pods can't be reached
// either until they start.
const forgetAll = "ip link set kube-bridge down; ip link delete meshd0; ip link delete meshd0-vx; ip route flush proto 77; ip -6 route flush proto 77; nft delete table inet meshd; true"

// boot starts a host after a power failure. Its pods start when the node is ready.
func (t *town) boot(ctx context.Context, n *lab.Node) error {
	if err := errors.Join(n.Restore(ctx), n.Start()); err != nil {
		return err
	}
	if _, err := n.Await(ctx, "ready", lab.Ready); err != nil {
		return err
	}
	_, err := n.Run(ctx, "ip", "link", "set", "kube-bridge", "up")
	return err
}

// killRelay blocks WireGuard's packets from the first location to the second one, and kills the
// daemon that then forwards what the gateway there sends to the other one, if there is one soon.
func (t *town) killRelay(ctx context.Context) (pass func() error, err error) {
	from, to := t.nodes[0], t.nodes[3]
	if err := t.lab.Block(ctx, t.hosts(from.Location()), t.hosts(to.Location()), lab.Packets{Protocol: "udp", Port: 51820}); err != nil {
		return nil, err
	}
	relay, err := t.awaitRelay(ctx, from.Location(), to.Location())
	if err != nil || relay == nil {
		return t.heal(ctx), err
	}
	t.note("the relay is %s", relay.Name)
	return func() error { return errors.Join(relay.Start(), t.lab.Heal(ctx)) }, relay.Kill()
}

// relayWait is how long killRelay waits for a relay. Packets pass it after one or two seconds.
const relayWait = 20 * time.Second

// awaitRelay waits until a node forwards packets from one location to another one, and returns
// it; nil if there is none after relayWait.
func (t *town) awaitRelay(ctx context.Context, from, to string) (*lab.Node, error) {
	for began := time.Now(); time.Since(began) < relayWait; {
		for _, n := range t.nodes {
			if n.Location() != from {
				continue
			}
			s, err := n.Status(ctx)
			if err != nil {
				return nil, err
			}
			for _, p := range s.Peers {
				if p.Location == to && p.Path.Proved && p.Path.Relay != "" {
					return t.node(p.Path.Relay), nil
				}
			}
		}
		if err := wait.Sleep(ctx, lab.Pause(time.Second, began)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// node returns the node with the given name, nil if it is none of those that are always there.
func (t *town) node(name string) *lab.Node {
	for _, n := range t.nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

func (t *town) heal(ctx context.Context) func() error {
	return func() error { return t.lab.Heal(ctx) }
}

func (t *town) hosts(location string) []*lab.Host {
	var out []*lab.Host
	for _, n := range t.nodes {
		if n.Location() == location {
			out = append(out, n.Host)
		}
	}
	return out
}

// rewrite writes all configuration files and reloads the running daemons. The others read
// them when they start.
func (t *town) rewrite(ctx context.Context) error {
	var g errgroup.Group
	for _, n := range t.all() {
		g.Go(func() error {
			if err := t.configure(n); err != nil {
				return err
			}
			reload(ctx, n)
			return nil
		})
	}
	return g.Wait()
}

// reload reloads as systemd does: it waits until a starting daemon handles SIGHUP, which
// would end it before, and does nothing if there is no daemon.
func reload(ctx context.Context, n *lab.Node) {
	if n.PID() == 0 {
		return
	}
	if _, err := n.Await(ctx, "there", func(control.Status) bool { return true }); err == nil {
		_ = n.Reload() // it may have ended since
	}
}

// rollSecret replaces the secret as docs/security.md describes.
func (t *town) rollSecret(ctx context.Context) error {
	next, err := t.nodes[0].NewSecret(ctx)
	if err != nil {
		return err
	}
	old := t.secret
	for _, secret := range []string{old + next, next + old, next} {
		t.mu.Lock()
		t.secret = secret
		t.mu.Unlock()
		if err := errors.Join(t.rewrite(ctx), wait.Sleep(ctx, time.Second)); err != nil {
			return err
		}
	}
	return nil
}

// changeMode writes another mode into the files and reloads one node, which all others
// follow.
func (t *town) changeMode(ctx context.Context, n *lab.Node, mode mesh.Mode) error {
	t.mu.Lock()
	t.generation++
	t.mode = mode
	t.mu.Unlock()
	var errs []error
	for _, o := range t.all() {
		errs = append(errs, t.configure(o))
	}
	reload(ctx, n)
	return errors.Join(errs...)
}

// leave removes the ninth node for good.
func (t *town) leave(ctx context.Context, by *lab.Node) error {
	if err := t.ninth.Stop(); err != nil {
		return err
	}
	if _, err := t.ninth.Meshd(ctx, "down"); err != nil {
		return err
	}
	left, err := holdingsOf(t.ninth)
	if err == nil && left != (holdings{}) {
		err = fmt.Errorf("%s has left %+v on its host", t.ninth.Name, left)
	}
	if err != nil {
		return err
	}
	return t.forgetNinth(ctx, by)
}

// forgetNinth has a node forget the ninth one, which did not announce that it left.
func (t *town) forgetNinth(ctx context.Context, by *lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, wholeLimit)
	defer cancel()
	for began := time.Now(); ; {
		out, err := by.Meshd(ctx, "forget", t.ninth.Name)
		switch {
		case err == nil:
			return nil
		case strings.Contains(out+err.Error(), "no node is named"):
			return nil // it has never heard of it
		case !strings.Contains(out+err.Error(), "is alive"):
			return err
		}
		if wait.Sleep(ctx, lab.Pause(time.Second, began)) != nil {
			return err
		}
	}
}

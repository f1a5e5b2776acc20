// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// patience is how long any required condition may take.
const patience = 2 * time.Minute

// packetPeriod makes 50 packets a second in each direction.
const packetPeriod = 20 * time.Millisecond

// crowd are addresses on the internet from which attackers send.
var crowd = netip.MustParsePrefix("198.18.0.0/15")

// Options are settings of the daemons of a bed.
type Options struct {
	Settings []string // further lines of each configuration
	Env      []string // of the daemons; see [lab.Node.Env]
}

// Bed is a mesh of three nodes. Victim and Friend share a LAN, and the victim is their
// location's gateway. Far is alone elsewhere; all may join at the victim's address.
type Bed struct {
	Victim, Friend, Far *lab.Node

	lab       *lab.Lab
	distance  *distance
	binary    string
	options   Options
	secret    string
	near, far *lab.Pod
	newcomers int
	ids       map[*lab.Node]mesh.ID
	overlay   string // the victim's address in it
	cluster   mesh.Cluster
}

// NewBed makes a mesh that has settled, with a pod on the victim and on Far.
func NewBed(ctx context.Context, binary string, o Options) (*Bed, error) {
	binary, err := filepath.Abs(binary) // commands on hosts run in /
	if err != nil {
		return nil, fmt.Errorf("find meshd: %w", err)
	}
	l, err := lab.New(ctx)
	if err != nil {
		return nil, err
	}
	b := &Bed{lab: l, binary: binary, options: o, ids: map[*lab.Node]mesh.ID{}}
	if err := errors.Join(b.makeNodes(ctx), b.settle(ctx)); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Close removes the lab.
func (b *Bed) Close() error {
	var err error
	if b.distance != nil {
		err = b.distance.close()
	}
	return errors.Join(err, b.lab.Close())
}

// Nodes returns the three nodes.
func (b *Bed) Nodes() []*lab.Node { return []*lab.Node{b.Victim, b.Friend, b.Far} }

func (b *Bed) makeNodes(ctx context.Context) error {
	if _, err := b.lab.Outside().Run(ctx, "ip", "route", "add", "local", crowd.String(), "dev", "lo"); err != nil {
		return err
	}
	site, err := b.lab.Site(ctx, "office", lab.SiteOptions{Underlay: lab.NAT})
	if err != nil {
		return err
	}
	victim, err := site.Host(ctx, "victim")
	if err != nil {
		return err
	}
	friend, err := site.Host(ctx, "friend")
	if err != nil {
		return err
	}
	far, err := b.lab.Host(ctx, "far", lab.NAT)
	if err != nil {
		return err
	}
	b.Victim, b.Friend, b.Far = lab.NewNode(victim, b.binary), lab.NewNode(friend, b.binary), lab.NewNode(far, b.binary)
	if b.secret, err = b.Victim.NewSecret(ctx); err != nil {
		return err
	}
	if b.distance, err = newDistance(ctx, b.lab.Outside(), distant); err != nil {
		return err
	}
	for n, lines := range map[*lab.Node][]string{
		b.Victim: {"  location: office", "  gateway: prefer", "relay:", `  listen: ":443"`},
		b.Friend: {"  location: office"},
		b.Far:    nil,
	} {
		if err := b.configure(n, lines...); err != nil {
			return err
		}
	}
	text, err := b.Victim.Run(ctx, "cat", lab.ConfigPath)
	if err != nil {
		return err
	}
	parsed, err := config.Parse("meshd.yaml", []byte(text))
	b.cluster = parsed.Cluster
	return err
}

// gossip returns the victim's public gossip address.
func (b *Bed) gossip() netip.AddrPort {
	return netip.AddrPortFrom(b.Victim.Public(), config.DefaultGossipPort)
}

func (b *Bed) configure(n *lab.Node, lines ...string) error {
	n.Env(b.options.Env...)
	return n.Configure(lab.Config(n.Name, []string{b.gossip().String()}, slices.Concat(lines, b.options.Settings)...), b.secret)
}

// settle starts all nodes and makes the pods.
func (b *Bed) settle(ctx context.Context) error {
	for _, n := range b.Nodes() {
		if err := n.Start(); err != nil {
			return err
		}
	}
	g, waiting := errgroup.WithContext(ctx)
	for _, n := range b.Nodes() {
		g.Go(func() error { return await(waiting, n, "ready with the others", lab.Sees(2)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, n := range b.Nodes() {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		b.ids[n] = s.Node.ID
		if n == b.Victim {
			b.overlay = s.Node.Overlay[0].String()
		}
	}
	isGateway := func(s control.Status) bool {
		return slices.ContainsFunc(s.Peers, func(p control.Peer) bool {
			return p.ID == b.ids[b.Friend] && (p.Role == "" || slices.Equal(p.Route.Via, []string{b.Victim.Name}))
		})
	}
	if err := await(ctx, b.Far, "aware that the victim is the gateway", isGateway); err != nil {
		return err
	}
	// Nodes serve clients as soon as there is one.
	if _, err := b.Far.Meshd(ctx, "client", "add", "laptop", "--out", "/run/laptop.conf"); err != nil {
		return err
	}
	if err := await(ctx, b.Victim, "aware of the client", func(s control.Status) bool { return len(s.Clients) == 1 }); err != nil {
		return err
	}
	var err error
	if b.near, err = b.Victim.Pod(ctx, lab.Network, "near"); err != nil {
		return err
	}
	b.far, err = b.Far.Pod(ctx, lab.Network, "far")
	return err
}

// await waits until the condition holds for a node's status.
func await(ctx context.Context, n *lab.Node, what string, ok func(control.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := n.Await(ctx, what, ok)
	return err
}

// Talk has the victim's pod and the far one send each other packets.
func (b *Bed) Talk(ctx context.Context) (*lab.Exchange, error) { return talk(ctx, b.near, b.far) }

// TalkOnLAN has the victim's pod talk to a new one on the friend.
func (b *Bed) TalkOnLAN(ctx context.Context) (*lab.Exchange, error) {
	beside, err := b.Friend.Pod(ctx, lab.Network, "beside")
	if err != nil {
		return nil, err
	}
	return talk(ctx, b.near, beside)
}

func talk(ctx context.Context, one, other *lab.Pod) (*lab.Exchange, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, way := range [][2]*lab.Pod{{one, other}, {other, one}} {
		if err := way[0].AwaitPings(ctx, way[1].Addresses[:1]); err != nil {
			return nil, err
		}
	}
	return lab.StartExchange(
		lab.Party{At: one.Do, Addr: one.Addresses[0]}, lab.Party{At: other.Do, Addr: other.Addresses[0]}, packetPeriod)
}

// lanPlain counts packets that reach a host over its LAN in plain text: packets with
// addresses of the mesh, as they are or in vxlan.
const lanPlain = `
table inet lan-plain {
	counter plain { }
	chain count {
		type filter hook prerouting priority -500
		iifname eth0 ip saddr { 10.4.0.0/16, 10.42.0.0/16 } counter name plain
		iifname eth0 udp dport 7947 counter name plain
	}
}
`

// CountPlainText begins to count packets that reach the friend over its LAN in plain text.
func (b *Bed) CountPlainText(ctx context.Context) error {
	const path = "/run/lan-plain.nft"
	if err := b.Friend.WriteFile(path, lanPlain, 0o600); err != nil {
		return err
	}
	_, err := b.Friend.Run(ctx, "nft", "-f", path)
	return err
}

// PlainText returns the number of such packets.
func (b *Bed) PlainText(ctx context.Context) (string, error) {
	out, err := b.Friend.Run(ctx, "nft", "list", "counter", "inet", "lan-plain", "plain")
	if _, after, ok := strings.Cut(out, "packets "); ok {
		count, _, _ := strings.Cut(after, " ")
		return count, err
	}
	return "", errors.Join(err, errors.New("count plain text: nft shows no counter"))
}

// Newcomer is a new node that joins a mesh under attack.
type Newcomer struct {
	*lab.Node
	Took time.Duration // from its start until it was online
}

// Join starts a newcomer, far away, and waits until it is online: it and the victim see each other
// alive, and the victim's overlay address has answered it.
func (b *Bed) Join(ctx context.Context) (Newcomer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b.newcomers++
	h, err := b.lab.Host(ctx, fmt.Sprintf("newcomer-%d", b.newcomers), lab.NAT)
	if err != nil {
		return Newcomer{}, err
	}
	n := Newcomer{Node: lab.NewNode(h, b.binary)}
	if err := errors.Join(b.distance.add(ctx, h), b.configure(n.Node), n.Start()); err != nil {
		return n, err
	}
	began := time.Now()
	victim, err := n.Await(ctx, "aware of the victim", func(s control.Status) bool {
		return lab.Ready(s) && slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return p.ID == b.ids[b.Victim] && p.Alive })
	})
	if err != nil {
		return n, err
	}
	_, err = b.Victim.Await(ctx, "aware of "+n.Name, func(s control.Status) bool {
		return slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return p.Name == n.Name && p.Alive })
	})
	if err != nil {
		return n, err
	}
	for _, p := range victim.Peers {
		if p.ID == b.ids[b.Victim] {
			err = n.AwaitPings(ctx, p.Overlay[:1])
		}
	}
	n.Took = time.Since(began)
	return n, err
}

// Leave stops a newcomer and revokes its identity on an honest node.
func (b *Bed) Leave(ctx context.Context, n Newcomer) error {
	if n.Node == nil {
		return nil // it didn't come so far
	}
	s, err := n.Status(ctx)
	if err == nil {
		_, err = b.Far.Meshd(ctx, "revoke", "--yes", s.Node.ID.String())
	}
	return errors.Join(err, n.Kill(), n.Close())
}

// Verdict drains and undrains the friend, and waits until the victim knows each.
func (b *Bed) Verdict(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, step := range []struct {
		args     []string
		draining bool
	}{{[]string{"drain"}, true}, {[]string{"drain", "--undo"}, false}} {
		if _, err := b.Friend.Meshd(ctx, step.args...); err != nil {
			return err
		}
		_, err := b.Victim.Await(ctx, "aware of "+strings.Join(step.args, " ")+" on the friend", func(s control.Status) bool {
			return slices.ContainsFunc(s.Peers, func(p control.Peer) bool {
				return p.ID == b.ids[b.Friend] && (p.Role == control.RoleDraining) == step.draining
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

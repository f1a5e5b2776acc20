// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// Attacks returns all attacks. Those that leave something behind come last.
var Attacks = []Attack{
	{Name: "silent streams", Round: silentStreams, Pause: 10 * time.Millisecond, Peak: Usage{Descriptors: 5000, Goroutines: 10000, RSS: 192 << 20}},
	{Name: "handshakes of TLS", Round: handshakes, Pause: 10 * time.Millisecond, Peak: Usage{Descriptors: 5000, Goroutines: 10000, RSS: 256 << 20}},
	{Name: "half-open metrics", Round: halfOpen(func(t *Target) (lab.Place, string) { return t.Victim.Do, lab.MetricsAddress }), Pause: time.Second, Peak: fewConnections},
	{Name: "half-open answers to clients", Round: halfOpen(func(t *Target) (lab.Place, string) { return t.far.Do, t.overlay + ":7948" }), Pause: time.Second, Peak: fewConnections},
	{Name: "replay", Round: replay, Pause: 200 * time.Millisecond},
	{Name: "probes", Round: probes, Pause: 200 * time.Millisecond},
	{Name: "packets of others", Round: packetsOfOthers, Pause: 200 * time.Millisecond},
	{Name: "another's identity", Round: anothersIdentity, Pause: 500 * time.Millisecond},
	{Name: "another's name", Round: anothersName, Pause: time.Second},
	{Name: "escapes", Round: escapes, Pause: time.Second},
	{Name: "networks", Round: networks, Pause: time.Second},
	{Name: "forged objects", Round: forgedObjects, Pause: time.Second},
	{Name: "settings", Round: hugeGeneration, Pause: time.Second},
	{Name: "verdicts", Round: verdicts, Pause: time.Second},
	{Name: "tombstones", Round: tombstones, Pause: 2 * time.Second, Peak: Usage{Disk: 2 << 20}},
	{Name: "names", Round: names, Pause: 5 * time.Second, Many: true, Peak: manyNodes, Keeps: manyNodes},
}

// manyNodes is the cost of some thousand nodes, of which fifty have an address and so a
// tunnel. Userspace WireGuard has goroutines and queues for each.
var manyNodes = Usage{Goroutines: 4000, Heap: 160 << 20, RSS: 256 << 20, Disk: 10 << 20}

// fewConnections is the cost of the connections that an HTTP server may have open.
var fewConnections = Usage{Descriptors: 600, Goroutines: 1200, RSS: 48 << 20}

// silentStreams opens hundreds of streams a second, each from another address, and sends
// nothing over them.
func silentStreams(ctx context.Context, t *Target) error {
	return t.lab.Outside().Do(func() error {
		for range 100 {
			if conn, err := t.dial(ctx, t.nobody()); err == nil {
				t.hold(conn)
			}
		}
		return nil
	})
}

// handshakes begins hundreds of handshakes of TLS a second, each from another address, and ends
// none of them. One in four sends garbage instead.
func handshakes(ctx context.Context, t *Target) error {
	hello, err := clientHello()
	if err != nil {
		return err
	}
	return t.lab.Outside().Do(func() error {
		for i := range 100 {
			conn, err := t.dialPort(ctx, t.nobody(), 443)
			if err != nil {
				continue
			}
			t.hold(conn)
			message := hello
			if i%4 == 0 {
				message = append([]byte{0x16, 3, 1, 0x40, 0}, make([]byte, 16<<10)...)
			}
			_, _ = conn.Write(message) // the victim may have closed it
		}
		return nil
	})
}

// clientHello returns the first message of TLS.
func clientHello() ([]byte, error) {
	near, far := net.Pipe()
	defer far.Close()
	go func() { // until far is closed
		defer near.Close()
		_ = tls.Client(near, &tls.Config{ServerName: "aws.example.com"}).Handshake()
	}()
	b := make([]byte, 4096)
	n, err := far.Read(b)
	return b[:n], err
}

// halfOpen opens connections to an HTTP server. Every other one sends a request and reads
// the answer; the rest never complete a request.
func halfOpen(where func(t *Target) (lab.Place, string)) func(context.Context, *Target) error {
	return func(ctx context.Context, t *Target) error {
		place, addr := where(t)
		return place(func() error {
			d := net.Dialer{Timeout: 5 * time.Second}
			for i := range 1500 {
				conn, err := d.DialContext(ctx, "tcp", addr)
				if err != nil {
					return nil // turned away
				}
				question := "GET /healthz HTTP/1.1\r\nHost: a\r\n"
				if i%2 == 0 {
					question += "\r\n"
				}
				_, _ = conn.Write([]byte(question))
				t.hold(conn)
			}
			return nil
		})
	}
}

// packetsOfOthers sends packets in the names of honest nodes, which also claim a later
// boot.
func packetsOfOthers(_ context.Context, t *Target) error {
	var packets [][]byte
	for _, from := range []mesh.ID{t.ids[t.Friend], t.ids[t.Far]} {
		for _, kind := range []byte{gossip.AttackPacketAsk, gossip.AttackPacketHere} {
			forger := t.As(t.Identity)
			forger.Boot = 1 << 60
			p, err := forger.Packet(from, t.ids[t.Victim], kind, make([]byte, 8))
			if err != nil {
				return err
			}
			packets = append(packets, p)
		}
	}
	return t.throw(packets)
}

// introduce sends the victim the insider's own record.
func (t *Target) introduce(ctx context.Context) error {
	r, err := record(t.Attacker, insiderName, t.rounds+1, map[int]any{8: t.cluster.Hash()})
	if err != nil {
		return err
	}
	return t.tell(ctx, [][]byte{r})
}

// anothersIdentity opens streams that claim the identity of the victim, or of a node that
// the victim knows.
func anothersIdentity(ctx context.Context, t *Target) error {
	state, err := gossip.AttackState(nil)
	if err != nil {
		return err
	}
	for i, id := range []mesh.ID{t.ids[t.Victim], t.ids[t.Friend], t.ids[t.Far]} {
		h := gossip.Hello{ID: id, Instance: uint64(1000*t.rounds + i)}
		if err := t.whisper(ctx, t.Attacker, h, state); err != nil {
			return err
		}
	}
	return nil
}

// anothersName sends records with the names of honest nodes and earlier claims.
func anothersName(ctx context.Context, t *Target) error {
	var objects [][]byte
	for i, n := range t.Nodes() {
		r, err := record(t.Attacker, n.Name, 3*t.rounds+i+1, map[int]any{7: 1, 8: t.cluster.Hash(), 9: n.Location()})
		if err != nil {
			return err
		}
		objects = append(objects, r)
	}
	return t.tell(ctx, objects)
}

// escape holds characters that harm terminals, logs, and files with one setting per line.
const escape = "x\x1b[2J\x1b]0;owned\x07\r\nnameserver 192.0.2.66\n\u202e\u0085\u2028"

// escapes puts escape into every text that nodes send each other.
func escapes(ctx context.Context, t *Target) error {
	if err := t.introduce(ctx); err != nil {
		return err
	}
	var objects [][]byte
	add := func(raw []byte, err error) error {
		objects = append(objects, raw)
		return err
	}
	for i, change := range []map[int]any{
		{4: escape},
		{9: escape},
		{10: escape},
		{15: escape + ":7946"},
		{16: []any{[]any{escape, 51820, "configured"}}},
		{16: []any{[]any{"192.0.2.7", 51820, escape}}},
	} {
		if err := add(record(t.Attacker, insiderName, 100*(t.rounds+1)+i, change)); err != nil {
			return err
		}
	}
	key := sha256.Sum256([]byte(escape))
	for _, change := range []map[int]any{{3: escape, 7: []string{"all"}}, {3: insiderName, 7: []string{escape}}} {
		content := map[int]any{2: time.Now().UnixMilli(), 4: key[:], 6: 1000 + t.rounds}
		for field, value := range change {
			content[field] = value
		}
		if err := add(t.Object(gossip.AttackClient, content)); err != nil {
			return err
		}
	}
	for _, change := range []map[int]any{{6: escape, 7: "always"}, {6: "location", 7: escape}} {
		content := map[int]any{2: t.rounds + 1, 3: t.cluster.Hash(), 4: 1, 5: 2, 8: 1}
		for field, value := range change {
			content[field] = value
		}
		if err := add(t.Object(gossip.AttackSettings, content)); err != nil {
			return err
		}
	}
	victim := t.ids[t.Victim]
	if err := add(t.Object(gossip.AttackVerdict, map[int]any{2: t.rounds + 1, 3: victim[:], 4: escape})); err != nil {
		return err
	}
	if err := t.tell(ctx, objects); err != nil {
		return err
	}
	nothing, err := gossip.AttackState(nil)
	if err != nil {
		return err
	}
	for _, change := range []func(*mesh.Cluster){
		func(c *mesh.Cluster) { c.Name = escape },
		func(c *mesh.Cluster) { c.Trust = escape },
		func(c *mesh.Cluster) { c.DNS.Domain = escape },
		func(c *mesh.Cluster) { c.Encapsulation = escape },
		func(c *mesh.Cluster) { c.Mode = escape },
	} {
		if err := t.whisper(ctx, t.Attacker, gossip.Hello{ID: t.ID(), Instance: 1, Cluster: change}, nothing); err != nil {
			return err
		}
	}
	return nil
}

// firstInsider is the first slot that an insider claims. A node with the secret may claim
// a slot and gets routes.
const firstInsider = 200

// networks has nodes announce networks that no node may: all addresses, the cloud's
// metadata service, resolvers, the LAN, the mesh and its routers.
func networks(ctx context.Context, t *Target) error {
	lan := netip.MustParsePrefix("172.20.1.0/24")
	var objects [][]byte
	for i, list := range [][]string{
		{"169.254.169.254/32"},
		{"127.0.0.53/32"},
		{"0.0.0.0/0"},
		{"::/0"},
		{"0.0.0.0/1", "128.0.0.0/1"},
		{"224.0.0.0/4"},
		{"::1/128", "fe80::/10"},
		{lan.String()},
		{t.Friend.Address().String() + "/32"},
		{t.gossip().Addr().String() + "/32"},
		{"10.42.0.0/16"},
		{"10.4.0.0/16"},
		{"10.43.0.0/16"},
	} {
		var prefixes []netip.Prefix
		for _, text := range list {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		r, err := record(t.other(i), fmt.Sprintf("%s-%d", insiderName, i), t.rounds+1, map[int]any{
			6: firstInsider + i, 7: time.Now().UnixMilli(), 8: t.cluster.Hash(), 11: 1420, 13: 51820, 14: 7946, 18: prefixes,
			16: []any{[]any{"192.0.2.66", 51820, "configured"}}, 19: 1,
		})
		if err != nil {
			return err
		}
		objects = append(objects, r)
	}
	return t.tell(ctx, objects)
}

// forgedObjects returns four megabytes of objects with invalid signatures, in the names of
// the insider and of honest nodes.
func forgedObjects(ctx context.Context, t *Target) error {
	if err := t.introduce(ctx); err != nil {
		return err
	}
	return t.repeat(ctx, 4<<20/400, func(n int) ([]byte, error) {
		r, err := record(t.Attacker, insiderName, 1000+n, map[int]any{8: t.cluster.Hash(), 15: fmt.Sprintf("%0200d:7946", n)})
		if err == nil {
			r[1+n%64] ^= 1
		}
		return r, err
	})
}

// hugeGeneration sends settings of generations that no file can exceed.
func hugeGeneration(ctx context.Context, t *Target) error {
	if err := t.introduce(ctx); err != nil {
		return err
	}
	var objects [][]byte
	for i, generation := range []uint64{1 << 40, gossip.AttackMaxSequence, gossip.AttackMaxSequence + 1, 1<<64 - 1} {
		o, err := t.Object(gossip.AttackSettings, map[int]any{
			2: 10*t.rounds + i + 1, 3: t.cluster.Hash(), 4: t.rounds + 1, 5: generation, 6: "cross", 7: "never", 8: 1,
		})
		if err != nil {
			return err
		}
		objects = append(objects, o)
	}
	return t.tell(ctx, objects)
}

// InPlainText sends settings with which nodes of one location would send to each other in
// plain text.
var InPlainText = Attack{Name: "from full to cross", Round: func(ctx context.Context, t *Target) error {
	if err := t.introduce(ctx); err != nil {
		return err
	}
	o, err := t.Object(gossip.AttackSettings, map[int]any{
		2: t.rounds + 1, 3: t.cluster.Hash(), 4: t.rounds + 1, 5: 2, 6: "cross", 7: "always", 8: 1,
	})
	if err != nil {
		return err
	}
	return t.tell(ctx, [][]byte{o})
}, Pause: time.Second}

// verdicts sends verdicts in the highest epochs that the far node and some unknown nodes
// are down.
func verdicts(ctx context.Context, t *Target) error {
	if err := t.introduce(ctx); err != nil {
		return err
	}
	subjects := []mesh.ID{t.ids[t.Victim], t.ids[t.Friend], t.ids[t.Far], t.ID()}
	for n := range 1000 {
		subjects = append(subjects, mesh.ID{0xdd, byte(n), byte(n >> 8)})
	}
	var objects [][]byte
	for i, subject := range subjects {
		for _, epoch := range []uint64{gossip.AttackMaxSequence - 1, gossip.AttackMaxSequence} {
			if i > 3 && epoch == gossip.AttackMaxSequence {
				continue
			}
			o, err := t.Object(gossip.AttackVerdict, map[int]any{2: epoch, 3: subject[:], 4: "down", 5: 1, 6: 1, 7: 1})
			if err != nil {
				return err
			}
			objects = append(objects, o)
		}
	}
	return t.tell(ctx, objects)
}

// tombstones sends tombstones for more nodes than there is room for.
func tombstones(ctx context.Context, t *Target) error {
	if err := t.introduce(ctx); err != nil {
		return err
	}
	return t.repeat(ctx, 8300, func(n int) ([]byte, error) {
		target := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
		return t.Object(gossip.AttackTombstone, map[int]any{2: 1, 3: target[:len(mesh.ID{})]})
	})
}

// names sends as many records as there is room for, each with six host names to resolve.
func names(ctx context.Context, t *Target) error {
	return t.repeat(ctx, 8100, func(n int) ([]byte, error) {
		var endpoints []any
		for i := range mesh.MaxEndpoints {
			endpoints = append(endpoints, []any{fmt.Sprintf("h%d.n%d.example.invalid", i, n), 51820, "configured"})
		}
		return record(t.As(identityOf("names", n)), fmt.Sprintf("%s-%d", insiderName, n), 1, map[int]any{
			6: firstInsider + n%50, 7: time.Now().UnixMilli(), 8: t.cluster.Hash(), 11: 1420, 13: 51820, 14: 7946,
			15: fmt.Sprintf("g.n%d.example.invalid:7946", n), 16: endpoints, 19: 1,
		})
	})
}

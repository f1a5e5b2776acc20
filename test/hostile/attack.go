// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// Attack is something that is done to the victim, round after round.
type Attack struct {
	Name  string
	Round func(ctx context.Context, t *Target) error
	Pause time.Duration // between two rounds
	Many  bool          // leaves behind more nodes than can be revoked one by one

	// Peak is how much more than before the victim may use meanwhile, and Keeps how much
	// more afterwards, beside what it may always.
	Peak, Keeps Usage
}

// Target is who is attacked, and by whom.
type Target struct {
	*Bed
	*gossip.Attacker // somebody who has the secret, with an identity of his own

	rounds int
	others []mesh.ID // further identities of the insider
	speaks int       // how many addresses of the crowd have spoken
	held   []net.Conn
	caught [][]byte // packets of others
	made   [][]byte // objects, the same in each round
}

// Target makes the target of the n-th attack. Each has another insider.
func (b *Bed) Target(n int) (*Target, error) {
	secrets, err := config.ReadSecrets(b.Victim.Path(lab.SecretPath))
	if err != nil {
		return nil, err
	}
	a, err := gossip.NewAttacker(identityOf("insider", n), b.cluster, secrets[0])
	if err != nil {
		return nil, err
	}
	return &Target{Bed: b, Attacker: a}, nil
}

// identityOf returns one of a fixed row of identities.
func identityOf(what string, n int) ed25519.PrivateKey {
	seed := sha256.Sum256(fmt.Append(nil, what, " ", n))
	return ed25519.NewKeyFromSeed(seed[:])
}

// Run goes on until ctx ends. First is closed after the first round.
func (t *Target) Run(ctx context.Context, a Attack, first chan<- struct{}) error {
	defer t.release(0)
	for ; ; t.rounds++ {
		if err := a.Round(ctx, t); err != nil && ctx.Err() == nil {
			return fmt.Errorf("round %d: %w", t.rounds+1, err)
		}
		if t.rounds == 0 {
			close(first)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(a.Pause):
		}
	}
}

// Identities are all that the insider has used, except where they are too many.
func (t *Target) Identities() []mesh.ID { return append([]mesh.ID{t.ID()}, t.others...) }

// other is the n-th further identity of the insider.
func (t *Target) other(n int) *gossip.Attacker {
	for len(t.others) <= n {
		t.others = append(t.others, t.As(identityOf(t.ID().String(), len(t.others))).ID())
	}
	return t.As(identityOf(t.ID().String(), n))
}

// Banish has an honest node revoke the insider's identities, as a person would who has
// found out.
func (t *Target) Banish(ctx context.Context) error {
	for _, id := range t.Identities() {
		if _, err := t.Far.Meshd(ctx, "revoke", id.String()); err != nil {
			return err
		}
	}
	return nil
}

// hold keeps a connection open until many later ones are, or the attack ends.
func (t *Target) hold(conn net.Conn) {
	t.held = append(t.held, conn)
	t.release(maxHeld)
}

const maxHeld = 6000

// release closes the oldest connections but so many.
func (t *Target) release(keep int) {
	for len(t.held) > keep {
		_ = t.held[0].Close()
		t.held = t.held[1:]
	}
}

// nobody is the next address of the crowd. They lie in as many networks as can be.
func (t *Target) nobody() netip.Addr {
	t.speaks++
	b := crowd.Addr().As4()
	b[1] += byte(t.speaks >> 8 & 1)
	b[2], b[3] = byte(t.speaks), byte(1+t.speaks>>9%250)
	return netip.AddrFrom4(b)
}

// dial opens a connection to the victim's gossip port from somewhere on the internet. It
// is for use within Do of [lab.Lab.Outside].
func (t *Target) dial(ctx context.Context, from netip.Addr) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 5 * time.Second}
	return d.DialContext(ctx, "tcp", t.gossip().String())
}

// tell gives the victim objects over a stream, and returns when it has looked at them.
func (t *Target) tell(ctx context.Context, objects [][]byte) error {
	state, err := gossip.AttackState(objects)
	if err != nil {
		return err
	}
	return t.whisper(ctx, t.Attacker, gossip.Hello{ID: t.ID(), Instance: 1}, state)
}

// repeat tells the victim the same objects in each round.
func (t *Target) repeat(ctx context.Context, count int, object func(n int) ([]byte, error)) error {
	for n := len(t.made); n < count; n++ {
		o, err := object(n)
		if err != nil {
			return err
		}
		t.made = append(t.made, o)
	}
	return t.tell(ctx, t.made)
}

// whisper greets the victim, says something, and waits until it closes the stream. The
// victim may hang up on an attacker at any time.
func (t *Target) whisper(ctx context.Context, a *gossip.Attacker, h gossip.Hello, content []byte) error {
	var conn net.Conn
	from := t.nobody()
	if err := t.lab.Outside().Do(func() (err error) {
		conn, err = t.dial(ctx, from)
		return err
	}); err != nil {
		return nil // turned away
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	s, err := a.Handshake(conn, h)
	if err != nil {
		return nil
	}
	if _, err := s.Write(content); err == nil {
		_, _ = io.Copy(io.Discard, s)
	}
	return nil
}

// throw sends packets to the victim's gossip port, from somewhere on the internet.
func (t *Target) throw(packets [][]byte) error {
	from := t.nobody()
	return t.lab.Outside().Do(func() error {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		conn, err := d.Dial("udp", t.gossip().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		for i, p := range packets {
			if i%50 == 49 {
				time.Sleep(time.Millisecond) // the receive buffer is not to overflow
			}
			if _, err := conn.Write(p); err != nil && !errors.Is(err, net.ErrClosed) {
				return err
			}
		}
		return nil
	})
}

// record is the record of a node that does not exist, with some fields changed.
func record(a *gossip.Attacker, name string, sequence int, change map[int]any) ([]byte, error) {
	key := sha256.Sum256(a.Identity)
	content := map[int]any{2: sequence, 3: 1, 4: name, 5: key[:], 6: mesh.None}
	for field, value := range change {
		content[field] = value
	}
	return a.Object(gossip.AttackRecord, content)
}

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

// Attack is one kind of attack on the victim, repeated in rounds.
type Attack struct {
	Name  string
	Round func(ctx context.Context, t *Target) error
	Pause time.Duration // between two rounds
	Many  bool          // leaves behind more nodes than can be revoked one by one

	// Peak is how much more than before the victim may use during the attack, and Keeps
	// how much more afterwards, in addition to what it may always use.
	Peak, Keeps Usage
}

// Target is the victim of an attack and the attacker.
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

// Target returns the target of the n-th attack. Each has an insider of its own.
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

// identityOf returns the n-th of a fixed list of identities.
func identityOf(what string, n int) ed25519.PrivateKey {
	seed := sha256.Sum256(fmt.Append(nil, what, " ", n))
	return ed25519.NewKeyFromSeed(seed[:])
}

// Run attacks until ctx ends. First is closed after the first round.
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

// Identities returns the identities that the insider has used, unless they are too many.
func (t *Target) Identities() []mesh.ID { return append([]mesh.ID{t.ID()}, t.others...) }

// other returns the n-th further identity of the insider.
func (t *Target) other(n int) *gossip.Attacker {
	for len(t.others) <= n {
		t.others = append(t.others, t.As(identityOf(t.ID().String(), len(t.others))).ID())
	}
	return t.As(identityOf(t.ID().String(), n))
}

// Banish revokes the insider's identities on an honest node, as a person would.
func (t *Target) Banish(ctx context.Context) error {
	for _, id := range t.Identities() {
		if _, err := t.Far.Meshd(ctx, "revoke", "--yes", id.String()); err != nil {
			return err
		}
	}
	return nil
}

// hold keeps a connection open until many later ones are open, or the attack ends.
func (t *Target) hold(conn net.Conn) {
	t.held = append(t.held, conn)
	t.release(maxHeld)
}

const maxHeld = 6000

// release closes the oldest connections and keeps the given number.
func (t *Target) release(keep int) {
	for len(t.held) > keep {
		_ = t.held[0].Close()
		t.held = t.held[1:]
	}
}

// nobody returns the next address of the crowd, spread over as many networks as possible.
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
	return t.dialPort(ctx, from, t.gossip().Port())
}

// dialPort is dial for another port.
func (t *Target) dialPort(ctx context.Context, from netip.Addr, port uint16) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 5 * time.Second}
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(t.Victim.Public(), port).String())
}

// tell sends the victim objects over a stream, and returns when it has processed them.
func (t *Target) tell(ctx context.Context, objects [][]byte) error {
	state, err := gossip.AttackState(objects)
	if err != nil {
		return err
	}
	return t.whisper(ctx, t.Attacker, gossip.Hello{ID: t.ID(), Instance: 1}, state)
}

// repeat sends the victim the same objects in each round.
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

// whisper opens a stream to the victim, sends data, and waits until the victim closes it.
// The victim may close an attacker's stream at any time.
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

// ask sends packets to an address of the victim, from somewhere on the internet, and returns how many
// bytes that were and how many came back.
func (t *Target) ask(to netip.AddrPort, packets [][]byte) (sent, answered int, err error) {
	from := t.nobody()
	err = t.lab.Outside().Do(func() error {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		conn, err := d.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, p := range packets {
			n, err := conn.Write(p)
			if err != nil && !errors.Is(err, net.ErrClosed) {
				return err
			}
			sent += n
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		buf := make([]byte, 2048)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return nil // nothing more has come
			}
			answered += n
		}
	})
	return sent, answered, err
}

// record returns the record of a node that does not exist, with some fields changed.
func record(a *gossip.Attacker, name string, sequence int, change map[int]any) ([]byte, error) {
	key := sha256.Sum256(a.Identity)
	content := map[int]any{2: sequence, 3: 1, 4: name, 5: key[:], 6: mesh.None}
	for field, value := range change {
		content[field] = value
	}
	return a.Object(gossip.AttackRecord, content)
}

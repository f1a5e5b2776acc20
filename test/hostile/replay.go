// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/path"
)

// replay captures packets to the victim for a while, and sends all of them again in each
// round, from other addresses.
func replay(ctx context.Context, t *Target) error {
	if t.rounds == 0 {
		if err := t.listenIn(ctx, func(b []byte) []byte { return payloadOf(b, config.DefaultGossipPort) }); err != nil {
			return err
		}
	}
	return t.throw(t.caught)
}

// wireguardPort is that of WireGuard by default.
const wireguardPort = 51820

// probes captures probes to the victim and from it, and sends them to it, as they are and forged, from
// other addresses, to WireGuard's port and to the relay's. Hardly anything comes back: a relay asks an
// address who is there, and a probe that was lost counts when it comes again.
func probes(ctx context.Context, t *Target) error {
	if t.rounds == 0 {
		victim := path.ShortOf(t.ids[t.Victim])
		if err := t.listenIn(ctx, func(packet []byte) []byte {
			b := probeIn(packet)
			if h, err := path.ParseHeader(b); err != nil || h.From != victim && h.To != victim {
				return nil
			}
			return b
		}); err != nil {
			return err
		}
		for n, b := range t.caught {
			forged := slices.Clone(b)
			forged[27]++ // the counter
			forged[len(forged)-1-n%16]++
			t.caught = append(t.caught, forged)
		}
	}
	for _, port := range []uint16{wireguardPort, config.DefaultGossipPort} {
		sent, answered, err := t.ask(netip.AddrPortFrom(t.Victim.Public(), port), t.caught)
		if err != nil {
			return err
		}
		if answered > sent/10+2*len(t.caught[0]) {
			return fmt.Errorf("%d bytes came back for %d bytes of probes to port %d", answered, sent, port)
		}
	}
	return nil
}

// probeIn returns the probe in an IPv4 packet, nil if there is none.
func probeIn(b []byte) []byte {
	for _, port := range []uint16{wireguardPort, config.DefaultGossipPort} {
		if d := payloadOf(b, port); isProbe(d) {
			return d
		}
	}
	return nil
}

// listenIn captures what is wanted of the packets that pass the internet's router, for some seconds and
// until there is something.
func (t *Target) listenIn(ctx context.Context, want func(packet []byte) []byte) error {
	return t.lab.Outside().Do(func() error {
		network := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(network))
		if err != nil {
			return fmt.Errorf("listen in: %w", err)
		}
		defer unix.Close(s)
		if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}); err != nil {
			return fmt.Errorf("listen in: %w", err)
		}
		buf := make([]byte, 2048)
		const enough = 500 // packets
		for began := time.Now(); len(t.caught) < enough && ctx.Err() == nil; {
			if since := time.Since(began); since > 5*time.Second && len(t.caught) > 0 {
				return nil
			} else if since > patience {
				return errors.New("captured no packet")
			}
			n, _, err := unix.Recvfrom(s, buf, 0)
			if err != nil {
				continue // nothing came
			}
			if b := want(buf[:n]); len(b) > 0 {
				t.caught = append(t.caught, append([]byte(nil), b...))
			}
		}
		return nil
	})
}

// payloadOf returns the UDP payload of an IPv4 packet to a port, nil for other packets
// (RFC 791, section 3.1, and RFC 768).
func payloadOf(b []byte, port uint16) []byte { return payload(b, 2, port) }

// payloadFrom returns that of a packet from a port.
func payloadFrom(b []byte, port uint16) []byte { return payload(b, 0, port) }

func payload(b []byte, at int, port uint16) []byte {
	const udpHeader = 8
	if len(b) < 20 || b[9] != unix.IPPROTO_UDP {
		return nil
	}
	head := 4 * int(b[0]&0x0f)
	if len(b) < head+udpHeader || binary.BigEndian.Uint16(b[head+at:]) != port {
		return nil
	}
	return b[head+udpHeader:]
}

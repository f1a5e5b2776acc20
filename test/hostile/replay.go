// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/config"
)

// replay captures packets to the victim for a while, and sends all of them again in each
// round, from other addresses.
func replay(ctx context.Context, t *Target) error {
	if t.rounds == 0 {
		if err := t.listenIn(ctx, 5*time.Second); err != nil {
			return err
		}
		if len(t.caught) == 0 {
			return errors.New("captured no packet")
		}
	}
	return t.throw(t.caught)
}

// listenIn captures the gossip that passes the internet's router.
func (t *Target) listenIn(ctx context.Context, d time.Duration) error {
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
		for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; {
			n, _, err := unix.Recvfrom(s, buf, 0)
			if err != nil {
				continue // nothing came
			}
			if b := payloadOf(buf[:n], config.DefaultGossipPort); len(b) > 0 {
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

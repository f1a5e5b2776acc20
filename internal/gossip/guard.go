// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// Kinds of memberlist's messages, the first byte of each (memberlist net.go,
// messageType).
const (
	memberlistPing     = 0
	memberlistAck      = 2
	memberlistAlive    = 4
	memberlistPushPull = 6
	memberlistCompound = 7
	memberlistUser     = 8
	memberlistCompress = 9
	memberlistNack     = 11
	memberlistCRC      = 12
	memberlistError    = 13
)

// errRefused means that a message must not reach memberlist, although its sender has the
// secret.
var errRefused = errors.New("memberlist's message is refused")

// eachMessage calls f for each of memberlist's messages in a packet. It refuses what our
// nodes never send: compressed messages, which may be decompression bombs, encrypted
// ones, labels, and nested compound messages.
func eachMessage(packet []byte, f func(kind byte, content []byte)) error {
	const crc = 1 + 4
	if len(packet) >= crc && packet[0] == memberlistCRC {
		packet = packet[crc:]
	}
	if len(packet) == 0 {
		return fmt.Errorf("%w: it is empty", errRefused)
	}
	if packet[0] != memberlistCompound {
		return oneMessage(packet, f)
	}
	if len(packet) < 2 || len(packet) < 2+2*int(packet[1]) {
		return fmt.Errorf("%w: %w", errRefused, errShort)
	}
	sizes, content := packet[2:2+2*int(packet[1])], packet[2+2*int(packet[1]):]
	for ; len(sizes) > 0; sizes = sizes[2:] {
		n := int(binary.BigEndian.Uint16(sizes))
		if n == 0 || n > len(content) {
			return fmt.Errorf("%w: %w", errRefused, errShort)
		}
		if err := oneMessage(content[:n], f); err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}

func oneMessage(b []byte, f func(byte, []byte)) error {
	kind := b[0]
	if kind == memberlistNack || kind <= memberlistUser && kind != memberlistPushPull && kind != memberlistCompound {
		f(kind, b[1:])
		return nil
	}
	return fmt.Errorf("%w: kind %d in a packet", errRefused, kind)
}

// checkOpening checks the first frame of a memberlist stream. Memberlist allocates
// buffers of the size that a push/pull announces, so that size is limited here.
func checkOpening(frame []byte) error {
	switch frame[0] {
	case memberlistPing, memberlistAck, memberlistError:
		return nil
	case memberlistPushPull:
		var header struct {
			Nodes, UserStateLen int
			Join                bool
		}
		if err := codec.NewDecoderBytes(frame[1:], &codec.MsgpackHandle{}).Decode(&header); err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		// Memberlist remembers dead nodes for a while, and several names of one node, so
		// there may be more members than nodes.
		if header.Nodes < 0 || header.Nodes > 2*maxSenders || header.UserStateLen < 0 || header.UserStateLen > maxState {
			return fmt.Errorf("%w: a push/pull of %d members and %d bytes", errRefused, header.Nodes, header.UserStateLen)
		}
		return nil
	}
	return fmt.Errorf("%w: kind %d on a stream", errRefused, frame[0])
}

// isEvicted reports whether a packet announces that a member is alive with an absurd
// incarnation. The packet may also contain earlier announcements.
func isEvicted(packet []byte, name string) (found bool) {
	_ = eachMessage(packet, func(kind byte, content []byte) {
		var alive struct {
			Incarnation uint32
			Node        string
		}
		if kind != memberlistAlive || !bytes.Contains(content, []byte(name)) {
			return // most messages are about others, and decoding is expensive
		}
		if codec.NewDecoderBytes(content, &codec.MsgpackHandle{}).Decode(&alive) == nil && alive.Node == name {
			// 0 follows the highest one; we begin with 1.
			found = found || alive.Incarnation == 0 || alive.Incarnation > maxIncarnation
		}
	})
	return found
}

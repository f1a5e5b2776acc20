// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// Kinds of messages, the first byte of each, as memberlist numbers them
// (memberlist net.go, messageType).
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

// errRefused means that memberlist is not to see something, although it comes
// from somebody who has the secret.
var errRefused = errors.New("memberlist's message is refused")

// eachMessage calls f for each of memberlist's messages in a packet. What no
// node of ours sends is refused: compressed messages, which may be bombs,
// encrypted ones, labels, and bundles within bundles.
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

// checkOpening checks how a stream of memberlist's begins. It sizes buffers by
// what a push/pull announces, so that is bounded here.
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
		// Memberlist remembers the dead for a while, and several names of one
		// node, so there may be more members than nodes.
		if header.Nodes < 0 || header.Nodes > 2*maxSenders || header.UserStateLen < 0 || header.UserStateLen > maxState {
			return fmt.Errorf("%w: a push/pull of %d members and %d bytes", errRefused, header.Nodes, header.UserStateLen)
		}
		return nil
	}
	return fmt.Errorf("%w: kind %d on a stream", errRefused, frame[0])
}

// isEvicted says whether a packet holds the word that a member is alive under
// an absurd incarnation. There may be earlier words of it in the same packet.
func isEvicted(packet []byte, name string) (found bool) {
	_ = eachMessage(packet, func(kind byte, content []byte) {
		var alive struct {
			Incarnation uint32
			Node        string
		}
		if kind != memberlistAlive || !bytes.Contains(content, []byte(name)) {
			return // most messages are of others, and decoding is dear
		}
		if codec.NewDecoderBytes(content, &codec.MsgpackHandle{}).Decode(&alive) == nil && alive.Node == name {
			// 0 is what comes after the last one; we begin with 1.
			found = found || alive.Incarnation == 0 || alive.Incarnation > maxIncarnation
		}
	})
	return found
}

// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/meshd/meshd/internal/mesh"
)

// packetKind is the kind of a packet's payload.
type packetKind byte

const (
	kindMemberlist packetKind = 1 // a packet of memberlist
	kindObjects    packetKind = 2 // signed objects, see packObjects
	kindSync       packetKind = 3 // a step of the comparison of two stores
	kindHere       packetKind = 4 // an answer: the counter of the packet that asked, 8 bytes
	kindAsk        packetKind = 5 // only a request for an answer
	kindCall       packetKind = 6 // see Call
	kindQuestion   packetKind = 7 // see Question
	kindAnswer     packetKind = 8 // see Question
	kindOrder      packetKind = 9 // see SendOrder
)

// wantFlag in the kind's byte asks for an answer: the sender has had none from this
// address recently, and does not know whether the address works.
const wantFlag = 0x80

// label is a hash of the sender's cluster name and ranges. It is inside the encrypted
// part.
type label [8]byte

// packet is the encrypted part of a UDP packet.
//
//	kind 1 | label 8 | sender 16 | boot 8 | counter 8 | payload
type packet struct {
	kind    packetKind
	want    bool
	label   label
	from    mesh.ID
	boot    uint64
	counter uint64
	payload []byte
}

const (
	packetHeader = 1 + len(label{}) + len(mesh.ID{}) + 8 + 8
	// maxPayload is the room for a packet's payload.
	maxPayload = maxPacket - 1 - sealOverhead - packetHeader
)

// errShort means that a message ends too early.
var errShort = errors.New("message is cut off")

func (p packet) append(b []byte) []byte {
	kind := byte(p.kind)
	if p.want {
		kind |= wantFlag
	}
	b = append(b, kind)
	b = append(b, p.label[:]...)
	b = append(b, p.from[:]...)
	b = binary.BigEndian.AppendUint64(b, p.boot)
	b = binary.BigEndian.AppendUint64(b, p.counter)
	return append(b, p.payload...)
}

func parsePacket(b []byte) (packet, error) {
	if len(b) < packetHeader {
		return packet{}, fmt.Errorf("parse packet: %w", errShort)
	}
	p := packet{kind: packetKind(b[0] &^ wantFlag), want: b[0]&wantFlag != 0}
	b = b[1:]
	b = b[copy(p.label[:], b):]
	b = b[copy(p.from[:], b):]
	p.boot, b = binary.BigEndian.Uint64(b), b[8:]
	p.counter, p.payload = binary.BigEndian.Uint64(b), b[8:]
	return p, nil
}

// unmapped converts an IPv4 address that a dual-stack socket reports as IPv6 back to
// IPv4, so that equal addresses compare equal.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

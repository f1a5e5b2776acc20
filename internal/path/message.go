// SPDX-License-Identifier: Apache-2.0

package path

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Op is what a message asks for or says.
type Op uint8

// The messages. Numbers are part of the protocol.
const (
	Ping   Op = 1 // answer with Pong over the way that this came
	Pong   Op = 2 // the answer to the Ping of the same number
	Call   Op = 3 // begin to punch now
	Called Op = 4 // I have sent my probes that open my own side
	Bind   Op = 5 // to a relay: forward to this address what is for me; the token is from Bound
	Bound  Op = 6 // from a relay: repeat this token from where you are, or, without one, it is done
	Row    Op = 7 // to a relay: what I send with this index, the Number, is for that Node
	Who    Op = 8 // from a relay: it does not know the address of the receiver, who is to bind again with this token
	Echo   Op = 9 // answer with Echoed over the way that this came, and learn nothing from it
	Echoed Op = 10
	Begun  Op = 11 // from a relay: a session has begun; what the receiver sends with this index, the Number, is for that Node
	// Unknown is from a relay: it does not know for whom what the receiver sends with this
	// index, the Number, is. Renew is for the peer that leads: begin WireGuard's session anew.
	Unknown Op = 12
	Renew   Op = 13
	lastOp     = Renew
)

// Message is what a datagram carries. All messages have one layout and one length, or are
// longer if they ask, so that an answer is never longer than what asked for it.
//
//	0   op
//	1   kind of the path that the message looks at
//	2   kind of the path in use
//	3   flags: bit 0, the path that the message looks at is the one in use;
//	    bit 1, the author rests the path; bit 2, the receiver is open
//	4   number, big-endian
//	8   relay of the path in use, or the node that a Row or a Begun is about
//	16  silence in milliseconds, big-endian
//	20  where the receiver is seen: 16 bytes of address, 2 of port
//	38  token of a relay
type Message struct {
	Op     Op
	Number uint32 // of a Ping, chosen by its author; repeated in the Pong
	Look   Kind   // of the path over which the author sends this
	Use    Kind   // of the path that the author uses
	Node   Short  // the relay of the path that the author uses, zero on a straight path; of a Row or a Begun the node it is about
	This   bool   // the path over which the author sends this is the one that it uses; of an Echo, it was answered before
	// Rests says that the author does not hold a punched path to the receiver open while nothing is
	// sent, see rest.go.
	Rests bool
	// Open says that strangers reach the receiver at the address to which this goes, as far as the author
	// knows.
	Open bool
	// Silence is for how long WireGuard of the author has received nothing from the
	// receiver, although it sent; zero if it receives. At most some 49 days.
	Silence time.Duration
	// Seen is the address from which the author received the Ping, in a Pong; in a Ping, that to which it
	// goes, if the author received something from there last.
	Seen netip.AddrPort
	// Token shows to a relay that its receiver is where it says. Zero for none.
	Token Token
	// Size is how long the datagram is to be, in bytes: zeros follow the message. 0 for no
	// longer than it is, and in what was received.
	Size int
}

const messageLen = 46

// errMessage is the error of all that is not a message.
var errMessage = errors.New("not a message")

// Append appends the encoded message to b.
func (m Message) Append(b []byte) []byte {
	b = append(b, byte(m.Op), byte(m.Look), byte(m.Use), 0)
	for bit, set := range [...]bool{m.This, m.Rests, m.Open} {
		if set {
			b[len(b)-1] |= 1 << bit
		}
	}
	b = binary.BigEndian.AppendUint32(b, m.Number)
	b = append(b, m.Node[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(min(m.Silence.Milliseconds(), 1<<32-1)))
	addr := m.Seen.Addr()
	var as16 [16]byte
	if addr.IsValid() && addr.Zone() != streamZone {
		as16 = addr.As16()
	}
	b = binary.BigEndian.AppendUint16(append(b, as16[:]...), m.Seen.Port())
	b = append(b, m.Token[:]...)
	return append(b, make([]byte, max(m.Size-sealedLen, 0))...)
}

// ParseMessage decodes a message. What follows it is ignored: zeros, or what a later version
// appends.
func ParseMessage(b []byte) (Message, error) {
	if len(b) < messageLen {
		return Message{}, fmt.Errorf("%w: %d bytes", errMessage, len(b))
	}
	m := Message{
		Op:      Op(b[0]),
		Look:    Kind(b[1]),
		Use:     Kind(b[2]),
		This:    b[3]&1 != 0,
		Rests:   b[3]&2 != 0,
		Open:    b[3]&4 != 0,
		Number:  binary.BigEndian.Uint32(b[4:]),
		Node:    Short(b[8:16]),
		Silence: time.Duration(binary.BigEndian.Uint32(b[16:])) * time.Millisecond,
		Token:   Token(b[38:46]),
	}
	if m.Op < Ping || m.Op > lastOp || m.Look > Stream || m.Use > Stream {
		return Message{}, fmt.Errorf("%w: op %d, kinds %d and %d", errMessage, m.Op, m.Look, m.Use)
	}
	if seen := netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[20:36])).Unmap(), binary.BigEndian.Uint16(b[36:])); !seen.Addr().IsUnspecified() && seen.Port() != 0 {
		m.Seen = seen
	}
	return m, nil
}

// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"fmt"
	"io"
)

// frameKind says for whom a frame is. Frames of other kinds are ignored, because a newer node
// may send them.
type frameKind byte

const (
	frameOwn       frameKind = 1 // a datagram between the WireGuard ports of both nodes
	frameRelayed   frameKind = 2 // a datagram to a relay, or from it
	frameGossip    frameKind = 3 // a packet of gossip
	frameKeepalive frameKind = 4 // nothing
)

// A frame is
//
//	0   length of the payload, big-endian
//	2   kind
//	3   payload
const frameHeader = 3

func appendHeader(b []byte, kind frameKind, length int) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(length)), byte(kind))
}

// frameReader splits a stream into frames.
type frameReader struct {
	// got takes a frame. Its payload is valid until flush returns.
	got func(kind frameKind, payload []byte) error
	// flush is called when all frames that have arrived were passed to got.
	flush func()
}

// readAll reads until an error, which io.EOF between two frames is too.
func (f frameReader) readAll(r io.Reader) error {
	buf := make([]byte, chunk)
	have := 0
	for {
		n, err := r.Read(buf[have:])
		rest, parseErr := f.split(buf[:have+n])
		f.flush()
		switch {
		case parseErr != nil:
			return parseErr
		case err == io.EOF && len(rest) > 0:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
		have = copy(buf, rest)
	}
}

// split passes on the frames at the beginning of b, and returns the incomplete one after them.
func (f frameReader) split(b []byte) (rest []byte, err error) {
	for len(b) >= frameHeader {
		n := int(binary.BigEndian.Uint16(b))
		if n > maxDatagram {
			return b, fmt.Errorf("read frame: %d bytes, at most %d are allowed", n, maxDatagram)
		}
		if len(b) < frameHeader+n {
			break
		}
		if err := f.got(frameKind(b[2]), b[frameHeader:frameHeader+n]); err != nil {
			return b, err
		}
		b = b[frameHeader+n:]
	}
	return b, nil
}

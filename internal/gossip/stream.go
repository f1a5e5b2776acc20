// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
)

// Ends of a handshake.
var (
	// errRejected: the other side closed the connection instead of answering,
	// which is what a node does that can't open the hello.
	errRejected = errors.New("closed the connection without an answer: its secret is another one")
	// errSelf: the address that was dialled is our own.
	errSelf = errors.New("the address is this node's own")
	// errCluster: the other side has another cluster name or other ranges.
	errCluster = errors.New("the other side belongs to another cluster")
)

// Roles, as additional data: a hello can't be sent back to its sender as an
// answer.
var (
	asDialer   = []byte{formatVersion, 'd'}
	asAcceptor = []byte{formatVersion, 'a'}
)

// stream is a connection on which everything is sealed. The keys of each
// direction follow from the secret and from random numbers of both sides, so
// that a recorded stream can't be played again. A frame is its length, two
// bytes, and its ciphertext; its nonce is its number.
type stream struct {
	net.Conn
	peer   hello
	closed func() // called once

	closing sync.Once

	reading sync.Mutex
	opener  cipher.AEAD
	opened  uint64
	rest    []byte // of a frame that was read in part
	begun   bool   // something was read
	budget  int    // bytes that may still come

	writing sync.Mutex
	sealer  cipher.AEAD
	sealed  uint64
}

// greet runs the dialer's half of a handshake. It takes place within the
// connection's deadline.
func greet(conn net.Conn, ring keyring, random io.Reader, ours hello) (*stream, error) {
	if err := ours.draw(random); err != nil {
		return nil, err
	}
	if err := writeHello(conn, ring[0], random, ours, asDialer); err != nil {
		return nil, err
	}
	sealed, err := readHello(conn)
	if errors.Is(err, io.EOF) {
		return nil, errRejected
	}
	if err != nil {
		return nil, err
	}
	keys, theirs, err := openHello(ring, sealed, asAcceptor)
	if err != nil {
		return nil, err
	}
	if theirs.echo != ours.random {
		return nil, errors.New("read hello: it answers another one")
	}
	s, err := newStream(conn, keys, ours.random, theirs.random)
	if err != nil {
		return nil, err
	}
	s.peer = theirs
	// The first frame is empty. It proves to the acceptor that our hello was
	// not a recording, before anything that it says is believed.
	return s, s.writeFrame(nil)
}

// welcome runs the acceptor's half.
func welcome(conn net.Conn, ring keyring, random io.Reader, ours hello) (*stream, error) {
	sealed, err := readHello(conn)
	if err != nil {
		return nil, err
	}
	keys, theirs, err := openHello(ring, sealed, asDialer)
	if err != nil {
		return nil, err
	}
	if err := ours.draw(random); err != nil {
		return nil, err
	}
	ours.echo = theirs.random
	if err := writeHello(conn, keys, random, ours, asAcceptor); err != nil {
		return nil, err
	}
	s, err := newStream(conn, keys, theirs.random, ours.random)
	if err != nil {
		return nil, err
	}
	s.peer = theirs
	s.opener, s.sealer = s.sealer, s.opener
	frame, err := s.readFrame()
	if err != nil {
		return nil, err
	}
	if len(frame) > 0 {
		return nil, errors.New("read first frame: it is not empty")
	}
	return s, nil
}

// newStream derives the keys, as the dialer uses them.
func newStream(conn net.Conn, keys secretKeys, dialer, acceptor [32]byte) (*stream, error) {
	salt := append(dialer[:], acceptor[:]...)
	out, err := deriveAEAD(keys.secret, salt, infoDialer, chacha20poly1305.New)
	if err != nil {
		return nil, err
	}
	in, err := deriveAEAD(keys.secret, salt, infoAcceptor, chacha20poly1305.New)
	if err != nil {
		return nil, err
	}
	return &stream{Conn: conn, closed: func() {}, sealer: out, opener: in, budget: maxState}, nil
}

func (h *hello) draw(random io.Reader) error {
	if _, err := io.ReadFull(random, h.random[:]); err != nil {
		return fmt.Errorf("draw a random number: %w", err)
	}
	return nil
}

// writeHello writes version, length and the sealed hello.
func writeHello(w io.Writer, keys secretKeys, random io.Reader, h hello, role []byte) error {
	plain, err := h.marshal()
	if err != nil {
		return err
	}
	sealed, err := seal(keys.hello, random, plain, role)
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint16([]byte{formatVersion}, uint16(len(sealed)))
	if _, err := w.Write(append(b, sealed...)); err != nil {
		return fmt.Errorf("write hello: %w", err)
	}
	return nil
}

func readHello(r io.Reader) ([]byte, error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read hello: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if head[0] != formatVersion || n < sealOverhead || n > maxHello {
		return nil, fmt.Errorf("read hello: %w", errSealed)
	}
	sealed := make([]byte, n)
	if _, err := io.ReadFull(r, sealed); err != nil {
		return nil, fmt.Errorf("read hello: %w", err)
	}
	return sealed, nil
}

func openHello(ring keyring, sealed, role []byte) (secretKeys, hello, error) {
	for _, keys := range ring {
		if plain, err := open(keys.hello, sealed, role); err == nil {
			h, err := parseHello(plain)
			return keys, h, err
		}
	}
	return secretKeys{}, hello{}, fmt.Errorf("open hello: %w", errSealed)
}

// Read returns the plaintext of the frames that come in.
func (s *stream) Read(b []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	for len(s.rest) == 0 {
		frame, err := s.readFrame()
		if err != nil {
			return 0, err
		}
		if len(frame) > 0 && !s.begun {
			if err := checkOpening(frame); err != nil {
				return 0, err
			}
			s.begun = true
		}
		s.rest = frame
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *stream) readFrame() ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(s.Conn, head[:]); err != nil {
		return nil, err // unwrapped: io.EOF is the end of the stream
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n < s.opener.Overhead() || n > maxFrame+s.opener.Overhead() {
		return nil, fmt.Errorf("read frame: %d bytes", n)
	}
	if s.budget -= n; s.budget < 0 {
		return nil, fmt.Errorf("read frame: more than %d bytes in one stream", maxState)
	}
	sealed := make([]byte, n)
	if _, err := io.ReadFull(s.Conn, sealed); err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	plain, err := s.opener.Open(sealed[:0], frameNonce(s.opened), sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("read frame: %w", errSealed)
	}
	s.opened++
	return plain, nil
}

// Write seals b in as many frames as it takes.
func (s *stream) Write(b []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for written := 0; written < len(b); {
		n := min(len(b)-written, maxFrame)
		if err := s.writeFrame(b[written : written+n]); err != nil {
			return written, err
		}
		written += n
	}
	return len(b), nil
}

func (s *stream) writeFrame(plain []byte) error {
	n := len(plain) + s.sealer.Overhead()
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+n), uint16(n))
	_, err := s.Conn.Write(s.sealer.Seal(b, frameNonce(s.sealed), plain, nil))
	s.sealed++
	return err
}

func frameNonce(n uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, chacha20poly1305.NonceSize-8, chacha20poly1305.NonceSize), n)
}

// Close closes the connection.
func (s *stream) Close() error {
	err := s.Conn.Close()
	s.closing.Do(s.closed)
	return err
}

// remote is the address of the other side.
func remote(conn net.Conn) netip.AddrPort {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return unmapped(a.AddrPort())
	}
	return netip.AddrPort{}
}

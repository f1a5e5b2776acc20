// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bufio"
	"bytes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/meshd/meshd/internal/mesh"
)

// Reasons why a handshake fails.
var (
	// errRejected: the other side closed the connection instead of answering, which a
	// node does if it can't decrypt the hello.
	errRejected = errors.New("closed the connection without an answer: its secret is another one")
	// errSelf: the dialled address is our own.
	errSelf = errors.New("the address is this node's own")
	// errVersion: the other side uses another version of this format.
	errVersion = errors.New("it uses another version of the gossip format: install the same version of meshd on both nodes")
	// errProof: the other side has not proved that it holds the private key of the
	// identity that it claims.
	errProof = errors.New("it does not prove the identity that it claims")
	// errCluster: the other side has another cluster name or other ranges.
	errCluster = errors.New("the other side belongs to another cluster")
)

// Roles, as additional data, so that a hello can't be sent back to its sender as an
// answer.
var (
	asDialer   = []byte{formatVersion, 'd'}
	asAcceptor = []byte{formatVersion, 'a'}
)

// stream is an encrypted connection. The keys of each direction are derived from the
// secret and from random numbers of both sides, so that a recorded stream can't be
// replayed. A frame is its length, two bytes, and its ciphertext, see streamCipher; its
// nonce is its number.
type stream struct {
	net.Conn
	peer   hello
	proxy  string // through which it goes; "" for none
	closed func() // called once

	closing sync.Once

	reading sync.Mutex
	in      io.Reader     // Conn, or a buffer before it
	buffer  *bufio.Reader // that buffer, for a carrier's stream
	opener  cipher.AEAD
	opened  uint64
	frame   []byte // room for one
	rest    []byte // of a frame that was partly read
	begun   bool   // something was read
	budget  int    // bytes that may still be received

	writing sync.Mutex
	sealer  cipher.AEAD
	sealed  uint64
	out     []byte // room for what is written at once
}

// handshaker runs handshakes. Each side sends a hello, and then proves its identity in
// its first frame:
//
//	dialer                acceptor
//	hello   ────────►
//	        ◄────────     hello, proof
//	proof   ────────►
//
// A proof is an identity key and its signature over both hellos. It depends on the other
// side's random number, so it can't be a recording, and nobody in between can have changed
// what the hellos say, such as the cipher. Nothing that a peer says is trusted
// before its proof.
type handshaker struct {
	ring     keyring
	random   io.Reader
	identity ed25519.PrivateKey
}

// initiate runs the dialer's half of a handshake. The caller sets the connection's
// deadline.
func (g handshaker) initiate(conn net.Conn, ours hello) (*stream, error) {
	if err := ours.draw(g.random); err != nil {
		return nil, err
	}
	said, err := g.writeHello(conn, g.ring[0], ours, asDialer)
	if err != nil {
		return nil, err
	}
	sealed, err := readHello(conn)
	if errors.Is(err, io.EOF) {
		return nil, errRejected
	}
	if err != nil {
		return nil, err
	}
	keys, theirs, err := openHello(g.ring, sealed, asAcceptor)
	if err != nil {
		return nil, err
	}
	if theirs.echo != ours.random {
		return nil, errors.New("read hello: it is the answer to another hello")
	}
	s, err := newStream(conn, keys, ours, theirs)
	if err != nil {
		return nil, err
	}
	s.peer = theirs
	both := transcript(said, sealed)
	if err := s.readProof(both, asAcceptor); err != nil {
		return nil, err
	}
	return s, s.writeFrame(g.proof(both, asDialer))
}

// respond runs the acceptor's half.
func (g handshaker) respond(conn net.Conn, ours hello) (*stream, error) {
	sealed, err := readHello(conn)
	if err != nil {
		return nil, err
	}
	keys, theirs, err := openHello(g.ring, sealed, asDialer)
	if err != nil {
		return nil, err
	}
	if err := ours.draw(g.random); err != nil {
		return nil, err
	}
	ours.echo = theirs.random
	said, err := g.writeHello(conn, keys, ours, asAcceptor)
	if err != nil {
		return nil, err
	}
	s, err := newStream(conn, keys, theirs, ours)
	if err != nil {
		return nil, err
	}
	s.peer = theirs
	s.opener, s.sealer = s.sealer, s.opener
	both := transcript(sealed, said)
	if err := s.writeFrame(g.proof(both, asAcceptor)); err != nil {
		return nil, err
	}
	return s, s.readProof(both, asDialer)
}

// transcript returns a hash of both encrypted hellos.
func transcript(dialer, acceptor []byte) [sha256.Size]byte {
	d, a := sha256.Sum256(dialer), sha256.Sum256(acceptor)
	return sha256.Sum256(append(d[:], a[:]...))
}

// provedBytes returns what the signature of a proof covers.
func provedBytes(transcript [sha256.Size]byte, role []byte) []byte {
	return append(append([]byte("meshd stream v1\x00"), role...), transcript[:]...)
}

// proof returns our public key and its signature.
func (g handshaker) proof(transcript [sha256.Size]byte, role []byte) []byte {
	public := g.identity.Public().(ed25519.PublicKey)
	return append(bytes.Clone(public), ed25519.Sign(g.identity, provedBytes(transcript, role))...)
}

// readProof checks that the peer holds the key of the identity in its hello.
func (s *stream) readProof(transcript [sha256.Size]byte, role []byte) error {
	frame, err := s.readFrame()
	if err != nil {
		return err
	}
	if len(frame) != ed25519.PublicKeySize+ed25519.SignatureSize {
		return fmt.Errorf("read proof: %d bytes: %w", len(frame), errProof)
	}
	key := ed25519.PublicKey(frame[:ed25519.PublicKeySize])
	if mesh.IDOf(key) != s.peer.id || !ed25519.Verify(key, provedBytes(transcript, role), frame[ed25519.PublicKeySize:]) {
		return fmt.Errorf("read proof of %v: %w", s.peer.id, errProof)
	}
	return nil
}

// newStream derives the keys, for the dialer's side.
func newStream(conn net.Conn, keys secretKeys, dialer, acceptor hello) (*stream, error) {
	salt := append(dialer.random[:], acceptor.random[:]...)
	info, cipherOf := streamCipher(dialer, acceptor)
	out, err := deriveAEAD(keys.secret, salt, infoDialer+info, cipherOf)
	if err != nil {
		return nil, err
	}
	in, err := deriveAEAD(keys.secret, salt, infoAcceptor+info, cipherOf)
	if err != nil {
		return nil, err
	}
	return &stream{Conn: conn, closed: func() {}, in: conn, sealer: out, opener: in, budget: maxState}, nil
}

func (h *hello) draw(random io.Reader) error {
	if _, err := io.ReadFull(random, h.random[:]); err != nil {
		return fmt.Errorf("draw a random number: %w", err)
	}
	return nil
}

// writeHello writes the version, the length and the encrypted hello, which it returns.
func (g handshaker) writeHello(w io.Writer, keys secretKeys, h hello, role []byte) (sealed []byte, err error) {
	plain, err := h.marshal()
	if err != nil {
		return nil, err
	}
	if sealed, err = seal(keys.hello, g.random, plain, role); err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint16([]byte{formatVersion}, uint16(len(sealed)))
	if _, err := w.Write(append(b, sealed...)); err != nil {
		return nil, fmt.Errorf("write hello: %w", err)
	}
	return sealed, nil
}

func readHello(r io.Reader) ([]byte, error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read hello: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if head[0] > 0 && head[0] < formatVersion {
		return nil, fmt.Errorf("read hello of version %d: %w", head[0], errVersion)
	}
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

// Read returns the plaintext of received frames.
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
	for n < len(b) && s.hasFrame() {
		frame, err := s.readFrame()
		if err != nil {
			return n, err
		}
		more := copy(b[n:], frame)
		n, s.rest = n+more, frame[more:]
	}
	return n, nil
}

// hasFrame reports whether a frame has arrived as a whole.
func (s *stream) hasFrame() bool {
	if s.buffer == nil || s.buffer.Buffered() < 2 {
		return false
	}
	head, err := s.buffer.Peek(2)
	return err == nil && s.buffer.Buffered() >= 2+int(binary.BigEndian.Uint16(head))
}

// readFrame returns the plaintext of the next frame, which is valid until it is called again.
func (s *stream) readFrame() ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return nil, err // unwrapped: io.EOF is the end of the stream
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n < s.opener.Overhead() || n > maxFrame+s.opener.Overhead() {
		return nil, fmt.Errorf("read frame: %d bytes", n)
	}
	if s.budget -= n; s.budget < 0 {
		return nil, fmt.Errorf("read frame: more than %d bytes in one stream", maxState)
	}
	s.frame = slices.Grow(s.frame[:0], n)
	sealed := s.frame[:n]
	if _, err := io.ReadFull(s.in, sealed); err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	plain, err := s.opener.Open(sealed[:0], frameNonce(s.opened), sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("read frame: %w", errSealed)
	}
	s.opened++
	return plain, nil
}

// Write encrypts b, in as many frames as necessary.
func (s *stream) Write(b []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	written := 0
	for part := range slices.Chunk(b, maxWrite) {
		s.out = s.out[:0]
		for frame := range slices.Chunk(part, maxFrame) {
			s.appendFrame(frame)
		}
		if _, err := s.Conn.Write(s.out); err != nil {
			return written, err
		}
		written += len(part)
	}
	return written, nil
}

// appendFrame appends an encrypted frame to what is to be written.
func (s *stream) appendFrame(plain []byte) {
	n := len(plain) + s.sealer.Overhead()
	s.out = binary.BigEndian.AppendUint16(slices.Grow(s.out, 2+n), uint16(n))
	s.out = s.sealer.Seal(s.out, frameNonce(s.sealed), plain, nil)
	s.sealed++
}

func (s *stream) writeFrame(plain []byte) error {
	s.out = s.out[:0]
	s.appendFrame(plain)
	_, err := s.Conn.Write(s.out)
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

// remote returns the address of the other side.
func remote(conn net.Conn) netip.AddrPort {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return unmapped(a.AddrPort())
	}
	return netip.AddrPort{}
}

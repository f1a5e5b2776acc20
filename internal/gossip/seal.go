// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/meshd/meshd/internal/mesh"
)

// errSealed means that a message can't be decrypted with any of our keys: it was made
// with another secret, for another node, or it is garbage.
var errSealed = errors.New("can't be decrypted with our secret")

// Domain separation: a message that is encrypted for one purpose can't be decrypted for
// another.
const (
	infoPacket   = "meshd v1 packet"
	infoHello    = "meshd v1 hello"
	infoDialer   = "meshd v1 stream from dialer"
	infoAcceptor = "meshd v1 stream from acceptor"
	infoAES      = " with AES-256-GCM" // after one of the two above
)

// secretKeys are the keys derived from one secret. The nonces of XChaCha20-Poly1305 are
// long enough to be random for the lifetime of a secret.
type secretKeys struct {
	secret [32]byte
	packet cipher.AEAD
	hello  cipher.AEAD
}

// keyring holds the keys of all secrets. The first one encrypts; all are tried to
// decrypt, so that a secret can be changed node by node.
type keyring []secretKeys

func newKeyring(secrets [][32]byte) (keyring, error) {
	if len(secrets) == 0 {
		return nil, errors.New("make gossip keys: no secret given")
	}
	var ring keyring
	for _, secret := range secrets {
		packet, err := deriveAEAD(secret, nil, infoPacket, chacha20poly1305.NewX)
		if err != nil {
			return nil, err
		}
		hello, err := deriveAEAD(secret, nil, infoHello, chacha20poly1305.NewX)
		if err != nil {
			return nil, err
		}
		ring = append(ring, secretKeys{secret, packet, hello})
	}
	return ring, nil
}

// deriveAEAD returns a cipher whose key is derived from the secret by HKDF (RFC 5869).
func deriveAEAD(secret [32]byte, salt []byte, info string, cipherOf func([]byte) (cipher.AEAD, error)) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret[:], salt, info, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive key %q: %w", info, err)
	}
	return cipherOf(key)
}

// sealOverhead is how many bytes seal adds to a message.
const sealOverhead = chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead

// seal returns nonce and ciphertext.
func seal(aead cipher.AEAD, random io.Reader, plain, ad []byte) ([]byte, error) {
	out := make([]byte, chacha20poly1305.NonceSizeX, len(plain)+sealOverhead)
	if _, err := io.ReadFull(random, out); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	return aead.Seal(out, out, plain, ad), nil
}

func open(aead cipher.AEAD, sealed, ad []byte) ([]byte, error) {
	if len(sealed) < sealOverhead {
		return nil, errSealed
	}
	plain, err := aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], ad)
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

// packetAD returns the additional data that binds a packet to its format and its
// receiver, so that a captured packet can't be sent to another node.
func packetAD(to mesh.ID) []byte { return append([]byte{formatVersion}, to[:]...) }

// sealPacket returns the UDP payload of a packet for one node.
func (r keyring) sealPacket(random io.Reader, p packet, to mesh.ID) ([]byte, error) {
	sealed, err := seal(r[0].packet, random, p.append(nil), packetAD(to))
	if err != nil {
		return nil, err
	}
	return append([]byte{formatVersion}, sealed...), nil
}

// openPacket is the reverse of sealPacket, on the receiver's side.
func (r keyring) openPacket(b []byte, self mesh.ID) (packet, error) {
	if len(b) == 0 || b[0] != formatVersion {
		return packet{}, fmt.Errorf("open packet: %w", errSealed)
	}
	for _, keys := range r {
		if plain, err := open(keys.packet, b[1:], packetAD(self)); err == nil {
			return parsePacket(plain)
		}
	}
	return packet{}, fmt.Errorf("open packet: %w", errSealed)
}

// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// halves returns both sides of a handshake between processors with AES or without.
func halves(ring keyring, dialer, acceptor bool) (d, a half) {
	near, far := net.Pipe()
	d, a = half{near, ring, testHello(0)}, half{far, ring, testHello(1)}
	d.aes, a.aes = dialer, acceptor
	return d, a
}

// Streams are encrypted with AES if both processors have it, and otherwise with ChaCha20.
func TestStreamCipher(t *testing.T) {
	key := make([]byte, chacha20poly1305.KeySize)
	for _, tt := range []struct {
		dialer, acceptor bool
		cipherOf         func([]byte) (cipher.AEAD, error)
	}{
		{false, false, chacha20poly1305.New},
		{false, true, chacha20poly1305.New},
		{true, false, chacha20poly1305.New},
		{true, true, newGCM},
	} {
		t.Run(fmt.Sprintf("dialer %v, acceptor %v", tt.dialer, tt.acceptor), func(t *testing.T) {
			dialer, acceptor := halves(testRing(t, testSecret), tt.dialer, tt.acceptor)
			defer dialer.Close()
			defer acceptor.Close()
			d, a, dialErr, acceptErr := shakeHands(dialer, acceptor)
			if dialErr != nil || acceptErr != nil {
				t.Fatalf("dialer: %v, acceptor: %v", dialErr, acceptErr)
			}
			want, err := tt.cipherOf(key)
			if err != nil {
				t.Fatal(err)
			}
			text := append([]byte{memberlistPing}, bytes.Repeat([]byte("x"), 2*maxFrame)...)
			for _, way := range []struct{ from, to *stream }{{d, a}, {a, d}} {
				for _, got := range []cipher.AEAD{way.from.sealer, way.to.opener} {
					if reflect.TypeOf(got) != reflect.TypeOf(want) {
						t.Errorf("got a %T, want a %T", got, want)
					}
				}
				go func() { _, _ = way.from.Write(text) }()
				got := make([]byte, len(text))
				if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, text) {
					t.Errorf("other bytes arrive, %v", err)
				}
			}
		})
	}
}

// passHello passes on one hello, in which somebody with the secret changes whether there is AES.
func passHello(ring keyring, from io.Reader, to io.Writer, role []byte, change func(*bool)) error {
	sealed, err := readHello(from)
	if err != nil {
		return err
	}
	if change != nil {
		keys, h, err := openHello(ring, sealed, role)
		if err != nil {
			return err
		}
		change(&h.aes)
		_, err = handshaker{ring: ring, random: rand.Reader}.writeHello(to, keys, h, role)
		return err
	}
	_, err = to.Write(append(binary.BigEndian.AppendUint16([]byte{formatVersion}, uint16(len(sealed))), sealed...))
	return err
}

// Nobody between two nodes can change their cipher, not even somebody with the secret.
func TestStreamCipherIsAuthentic(t *testing.T) {
	ring := testRing(t, testSecret)
	no, yes := func(aes *bool) { *aes = false }, func(aes *bool) { *aes = true }
	for _, tt := range []struct {
		name             string
		has              bool        // both processors have AES
		dialer, acceptor func(*bool) // change a hello
		want             error       // of the dialer
	}{
		{"unchanged", true, nil, nil, nil},
		{"none is left of both", true, no, no, errProof},
		{"none is left of the dialer's", true, no, nil, errSealed},
		{"none is left of the acceptor's", true, nil, no, errSealed},
		{"both are made up", false, yes, yes, errProof},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dialer, nearEnd := halves(ring, tt.has, tt.has)
			farEnd, acceptor := halves(ring, tt.has, tt.has)
			passed := make(chan error, 2)
			go func() {
				defer farEnd.Close()
				err := passHello(ring, nearEnd, farEnd, asDialer, tt.dialer)
				passed <- err
				_, _ = io.Copy(farEnd, nearEnd)
			}()
			go func() {
				defer nearEnd.Close()
				err := passHello(ring, farEnd, nearEnd, asAcceptor, tt.acceptor)
				passed <- err
				_, _ = io.Copy(nearEnd, farEnd)
			}()
			_, _, dialErr, acceptErr := shakeHands(dialer, acceptor)
			dialer.Close()
			acceptor.Close()
			for range cap(passed) {
				if err := <-passed; err != nil {
					t.Fatal(err)
				}
			}
			if !errors.Is(dialErr, tt.want) || (acceptErr == nil) != (tt.want == nil) {
				t.Errorf("dialer: got %v, want %v; acceptor: got %v", dialErr, tt.want, acceptErr)
			}
		})
	}
}

// A node says in its hellos what its processor has.
func TestNodesUseAES(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 0, nil), startNode(t, 1, nil)
	s, err := a.transport.dial(t.Context(), b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, want := s.peer.aes, hasAES(); got != want {
		t.Errorf("the hello says AES: %v, want %v", got, want)
	}
}

// BenchmarkStreamCipher writes and reads a stream in memory.
func BenchmarkStreamCipher(b *testing.B) {
	for _, aes := range []bool{false, true} {
		b.Run(fmt.Sprintf("AES %v", aes), func(b *testing.B) {
			dialer, acceptor := halves(testRing(b, testSecret), aes, aes)
			defer dialer.Close()
			defer acceptor.Close()
			d, a, err, _ := shakeHands(dialer, acceptor)
			if err != nil {
				b.Fatal(err)
			}
			d.carry()
			a.carry()
			text := make([]byte, maxWrite/2)
			b.SetBytes(int64(len(text)))
			go func() {
				for range b.N {
					if _, err := d.Write(text); err != nil {
						return
					}
				}
			}()
			received := make([]byte, len(text))
			for range b.N {
				if _, err := io.ReadFull(a, received); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

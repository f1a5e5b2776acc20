// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

func secretOf(n byte) Secret { return Secret(bytes.Repeat([]byte{n}, 32)) }

func successor(t *testing.T, old Secret) Secret {
	t.Helper()
	s, err := Successor(old, rand.NewChaCha8(secretOf(9)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSuccessor(t *testing.T) {
	old := secretOf(1)
	next := successor(t, old)
	if !follows(next, old) || follows(old, next) || follows(next, secretOf(2)) || follows(secretOf(2), old) {
		t.Error("a secret does not show which one it replaces")
	}
	if Hash(old) == Hash(next) || Hash(old) != Hash(secretOf(1)) {
		t.Errorf("hashes: got %v and %v", Hash(old), Hash(next))
	}
	if got := Hashes([]Secret{{1}, {2}, {3}, {4}, {5}}); len(got) != mesh.MaxSecrets || got[1] != Hash(Secret{2}) {
		t.Errorf("hashes of five: got %v", got)
	}
	if _, err := Successor(old, strings.NewReader("short")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("without randomness: got %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

func identity(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func pathKey(t testing.TB, n byte) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{n}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestOpen opens an order as its receiver, and as others or from others, which must fail.
func TestOpen(t *testing.T) {
	from, to, key := identity(1), mesh.ID{2}, pathKey(t, 3)
	old := secretOf(1)
	accept := Step{Round: Accept, Old: old, New: successor(t, old)}.Order()
	for _, o := range []Order{accept, {Round: Use, Old: accept.Old, New: accept.New}, {Round: Drop, Old: accept.Old, New: accept.New}} {
		sealed, err := Seal(o, "default", from, to, key.PublicKey())
		if err != nil || len(sealed) > 200 {
			t.Fatalf("%v: %d bytes, %v", o.Round, len(sealed), err)
		}
		if got, err := Open(sealed, "default", public(from), to, key); err != nil || got != o {
			t.Errorf("%v: got %v, %v", o.Round, got, err)
		}
		if bytes.Contains(sealed, accept.Secret[:8]) {
			t.Errorf("%v: the secret is not sealed", o.Round)
		}
		changed := bytes.Clone(sealed)
		changed[40] ^= 1
		for name, open := range map[string]func() (Order, error){
			"other signer":   func() (Order, error) { return Open(sealed, "default", public(identity(4)), to, key) },
			"other receiver": func() (Order, error) { return Open(sealed, "default", public(from), mesh.ID{5}, key) },
			"other key":      func() (Order, error) { return Open(sealed, "default", public(from), to, pathKey(t, 6)) },
			"other cluster":  func() (Order, error) { return Open(sealed, "east", public(from), to, key) },
			"changed":        func() (Order, error) { return Open(changed, "default", public(from), to, key) },
			"cut off":        func() (Order, error) { return Open(sealed[:len(sealed)-1], "default", public(from), to, key) },
			"short":          func() (Order, error) { return Open(sealed[:20], "default", public(from), to, key) },
			"nothing":        func() (Order, error) { return Open(nil, "default", public(from), to, key) },
		} {
			if got, err := open(); !errors.Is(err, ErrForged) || got != (Order{}) {
				t.Errorf("%v, %s: got %v, %v, want %v", o.Round, name, got, err, ErrForged)
			}
		}
	}
	// Sealing needs no identity: whoever knows the path key can seal what he likes, but not sign it.
	forged, err := Seal(accept, "default", identity(7), to, key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(forged, "default", public(from), to, key); !errors.Is(err, ErrForged) {
		t.Errorf("signed by another: got %v, want %v", err, ErrForged)
	}
}

func TestDecodeRefused(t *testing.T) {
	good := Order{Round: Accept, Secret: secretOf(1)}.encode()
	for name, b := range map[string][]byte{
		"empty": nil, "cut off": good[:8], "accept without a secret": good[:9], "short secret": good[:40], "long": append(bytes.Clone(good), 0),
		"use with a secret": append([]byte{byte(Use)}, good[1:]...), "unknown round": append([]byte{9}, good[1:9]...), "round 0": make([]byte, 9),
	} {
		if o, err := decode(b); err == nil {
			t.Errorf("%s: got %v, want an error", name, o)
		}
	}
}

// FuzzDecode feeds what a signature has been checked for: a node may be hostile.
func FuzzDecode(f *testing.F) {
	f.Add(Order{Round: Accept, Secret: secretOf(1)}.encode())
	f.Add(Order{Round: Drop}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := decode(b); err == nil && !bytes.Equal(o.encode(), b) {
			t.Errorf("%x becomes %x", b, o.encode())
		}
	})
}

func TestApply(t *testing.T) {
	old := secretOf(1)
	next, strange := successor(t, old), secretOf(7)
	order := func(r Round, old, next Secret) Order { return Step{Round: r, Old: old, New: next}.Order() }
	wrong := order(Accept, old, next)
	wrong.Secret = strange
	fails := errors.New("any")
	tests := []struct {
		name  string
		order Order
		mine  []Secret
		want  []Secret
		err   error
	}{
		{"accept", order(Accept, old, next), []Secret{old}, []Secret{old, next}, nil},
		{"use", order(Use, old, next), []Secret{old, next}, []Secret{next, old}, nil},
		{"drop", order(Drop, old, next), []Secret{next, old}, []Secret{next}, nil},
		{"accept again", order(Accept, old, next), []Secret{old, next}, nil, ErrDone},
		{"use again", order(Use, old, next), []Secret{next, old}, nil, ErrDone},
		{"drop again", order(Drop, old, next), []Secret{next}, nil, ErrDone},
		{"replay of accept after all", order(Accept, old, next), []Secret{next}, nil, fails},
		{"replay of use after all", order(Use, old, next), []Secret{next}, nil, fails},
		{"replay of drop in the next rotation", order(Drop, old, next), []Secret{next, strange}, nil, fails},
		{"use before accept", order(Use, old, next), []Secret{old}, nil, fails},
		{"drop before use", order(Drop, old, next), []Secret{old, next}, nil, fails},
		{"backwards", order(Use, next, old), []Secret{next, old}, nil, fails},
		{"drop of the new one", order(Drop, next, old), []Secret{old, next}, nil, fails},
		{"other secrets", order(Accept, old, next), []Secret{strange}, nil, fails},
		{"one more secret", order(Drop, old, next), []Secret{next, old, strange}, nil, fails},
		{"a secret that has another hash", wrong, []Secret{old}, nil, fails},
		{"a secret that replaces another one", order(Accept, old, strange), []Secret{old}, nil, fails},
		{"no secrets", order(Accept, old, next), nil, nil, fails},
	}
	for _, tt := range tests {
		mine := slices.Clone(tt.mine)
		got, err := tt.order.Apply(mine)
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.err == nil) || errors.Is(tt.err, ErrDone) != errors.Is(err, ErrDone) || !slices.Equal(mine, tt.mine) {
			t.Errorf("%s: got %v, %v, want %v, %v", tt.name, Hashes(got), err, Hashes(tt.want), tt.err)
		}
	}
}

func nodeOf(name string, secrets ...Secret) Node {
	return Node{ID: mesh.ID{name[0]}, Name: name, Alive: true, HasKey: true, Secrets: Hashes(secrets)}
}

func TestNext(t *testing.T) {
	o := secretOf(1)
	n, x := successor(t, o), secretOf(7)
	dead := func(n Node) Node { n.Alive = false; return n }
	noKey := nodeOf("c", o)
	noKey.HasKey = false
	tests := []struct {
		name   string
		own    []Secret
		others []Node
		round  Round
		send   string // first letters of names
		flags  string // begin, own
		err    string // in the error
	}{
		{"alone", []Secret{o}, nil, Accept, "", "begin own", ""},
		{"begin", []Secret{o}, []Node{nodeOf("b", o), nodeOf("c", o)}, Accept, "bc", "begin", ""},
		{"accept", []Secret{o, n}, []Node{nodeOf("b", o), nodeOf("c", o, n)}, Accept, "b", "", ""},
		{"use", []Secret{o, n}, []Node{nodeOf("b", o, n), nodeOf("c", n, o)}, Use, "b", "", ""},
		{"use, last", []Secret{o, n}, []Node{nodeOf("b", n, o), nodeOf("c", n, o)}, Use, "", "own", ""},
		{"a newcomer while others use", []Secret{o, n}, []Node{nodeOf("b", o), nodeOf("c", n, o)}, Accept, "b", "", ""},
		{"begun by another node that died", []Secret{n, o}, []Node{nodeOf("b", o, n), nodeOf("c", n, o)}, Use, "b", "", ""},
		{"drop", []Secret{n, o}, []Node{nodeOf("b", n, o), nodeOf("c", n)}, Drop, "b", "", ""},
		{"drop, last", []Secret{n, o}, []Node{nodeOf("b", n), nodeOf("c", n)}, Drop, "", "own", ""},
		{"one that is dead has done it", []Secret{n, o}, []Node{nodeOf("b", n, o), dead(nodeOf("c", n))}, Drop, "b", "", ""},

		{"dead before", []Secret{o}, []Node{nodeOf("b", o), dead(nodeOf("c", o))}, 0, "", "", "meshd forget c"},
		{"dead in accept", []Secret{o, n}, []Node{nodeOf("b", o), dead(nodeOf("c", o))}, 0, "", "", "c is not alive"},
		{"dead in use", []Secret{o, n}, []Node{nodeOf("b", n, o), dead(nodeOf("c", o, n))}, 0, "", "", "c is not alive"},
		{"dead in drop", []Secret{n, o}, []Node{nodeOf("b", n), dead(nodeOf("c", n, o))}, 0, "", "", "c is not alive"},
		{"several", []Secret{o}, []Node{dead(nodeOf("b", o)), dead(nodeOf("c", o))}, 0, "", "", "b is not alive, and would be locked out: start it, or run meshd forget b if it is gone for good; c is"},
		{"no path key", []Secret{o}, []Node{noKey}, 0, "", "", "path key of c"},
		{"older version", []Secret{o}, []Node{nodeOf("b", o), nodeOf("c")}, 0, "", "", "c does not say"},
		{"under way elsewhere", []Secret{o}, []Node{nodeOf("b", o), nodeOf("c", o, n)}, 0, "", "", "run meshd secret rotate there"},
		{"two at once", []Secret{o, n}, []Node{nodeOf("b", o, x)}, 0, "", "", "copy this node's secret file"},
		{"missed accept", []Secret{n, o}, []Node{nodeOf("b", o)}, 0, "", "", "copy this node's secret file"},
		{"dropped too early", []Secret{o, n}, []Node{nodeOf("b", n)}, 0, "", "", "copy this node's secret file"},
		{"by hand", []Secret{o, x}, []Node{nodeOf("b", o, x)}, 0, "", "", "roll them by hand"},
		{"three", []Secret{o, n, x}, nil, 0, "", "", "roll them by hand"},
		{"none", nil, nil, 0, "", "", "roll them by hand"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			step, err := Next(tt.own, tt.others)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want %q in it", err, tt.err)
				}
				return
			}
			send, flags := "", ""
			for _, n := range step.Send {
				send += n.Name
			}
			if step.Begin {
				flags += "begin "
			}
			if step.Own {
				flags += "own"
			}
			if flags = strings.TrimSpace(flags); err != nil || step.Round != tt.round || send != tt.send || flags != tt.flags {
				t.Errorf("got %v, to %q, %q, %v", step.Round, send, flags, err)
			}
		})
	}
}

// TestInterrupted has orders get lost in all ways, and another node with both secrets take over at any time. No two
// nodes ever lack a secret with which one of them seals, and all end with the new secret.
func TestInterrupted(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		old := secretOf(1)
		next := successor(t, old)
		secrets := [][]Secret{{old, next}, {old}, {old}, {old}} // by node; the first has begun
		self := 0
		for steps := 0; slices.ContainsFunc(secrets, func(s []Secret) bool { return len(s) == 2 }); steps++ {
			if steps > 1000 {
				t.Fatalf("seed %d: no end", seed)
			}
			if other := random.IntN(len(secrets)); random.IntN(10) == 0 && len(secrets[other]) == 2 {
				self = other
			}
			if len(secrets[self]) == 1 { // it is done here, others are not
				self = slices.IndexFunc(secrets, func(s []Secret) bool { return len(s) == 2 })
			}
			var others []Node
			for i, s := range secrets {
				if i != self {
					others = append(others, Node{ID: mesh.ID{byte(i)}, Alive: true, HasKey: true, Secrets: Hashes(s)})
				}
			}
			step, err := Next(secrets[self], others)
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, steps, err)
			}
			receivers := []int{self}
			if !step.Own {
				receivers = nil
				for _, n := range step.Send {
					receivers = append(receivers, int(n.ID[0]))
				}
			}
			for _, i := range receivers {
				if random.IntN(3) == 0 {
					continue
				}
				if secrets[i], err = step.Order().Apply(secrets[i]); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, steps, err)
				}
				for _, a := range secrets {
					if slices.ContainsFunc(secrets, func(b []Secret) bool { return !slices.Contains(b, a[0]) }) {
						t.Fatalf("seed %d, step %d: a node does not accept what another one uses", seed, steps)
					}
				}
			}
		}
		for i, s := range secrets {
			if !slices.Equal(s, []Secret{next}) {
				t.Errorf("seed %d: node %d ends with %v, want %v", seed, i, Hashes(s), Hash(next))
			}
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/rotation"
)

func pathKey(t *testing.T, n byte) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{n}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// theSecret is the secret of a new world.
var theSecret = rotation.Secret(bytes.Repeat([]byte{1}, 32))

// withSecrets returns b1 and c1, which name the secret of this world.
func withSecrets(w *world) []mesh.Record {
	b, c := w.b1(), w.c1()
	b.Secrets = rotation.Hashes([]rotation.Secret{theSecret})
	c.Secrets = b.Secrets
	return []mesh.Record{b, c}
}

// followers has the other nodes follow orders. It returns their secrets, by their IDs; a node that is not in there
// follows none.
func followers(w *world) map[mesh.ID][]rotation.Secret {
	secrets, keys := make(map[mesh.ID][]rotation.Secret), make(map[mesh.ID]*ecdh.PrivateKey)
	var paths []mesh.PathRecord
	for i, r := range withSecrets(w) {
		secrets[r.ID()], keys[r.ID()] = []rotation.Secret{theSecret}, pathKey(w.t, byte(i+10))
		paths = append(paths, mesh.PathRecord{Author: r.ID(), Key: [32]byte(keys[r.ID()].PublicKey().Bytes())})
	}
	w.network.changePaths(paths...)
	w.network.ordered = func(to mesh.ID, sealed []byte) {
		mine, follows := secrets[to]
		if !follows {
			return
		}
		o, err := rotation.Open(sealed, w.cfg.Cluster.Name, w.d.self.Key.Public().(ed25519.PublicKey), to, keys[to])
		if err != nil {
			w.t.Error(err)
		}
		next, err := o.Apply(mine)
		if errors.Is(err, rotation.ErrDone) {
			return
		}
		if err != nil {
			w.t.Error(err)
		}
		secrets[to] = next
		w.network.change(func(v *mesh.View) {
			i := slices.IndexFunc(v.Records, func(r mesh.Record) bool { return r.ID() == to })
			v.Records = slices.Clone(v.Records)
			v.Records[i].Secrets = rotation.Hashes(next)
		})
	}
	return secrets
}

// inFile returns the secrets in the file of this host.
func (w *world) inFile() []rotation.Secret {
	w.t.Helper()
	s, err := config.ReadSecrets(filepath.Join(w.dir, "secret"))
	if err != nil {
		w.t.Error(err)
	}
	return s
}

// TestRotateSecret does the three rounds, and finds all nodes with the new secret.
func TestRotateSecret(t *testing.T) {
	within(t, standsAlone, withSecrets, func(t *testing.T, w *world) {
		secrets := followers(w)
		var rounds []string
		for finished := false; !finished && len(rounds) < 5; {
			r, err := w.d.RotateSecret(t.Context())
			if err != nil || r.Nodes != 3 || r.Old != rotation.Hash(theSecret) || r.New == r.Old || r.Trust != mesh.TrustOpen {
				t.Fatalf("after %v: got %+v, %v", rounds, r, err)
			}
			rounds, finished = append(rounds, r.Round), r.Finished
			s := w.d.Status()
			noted := slices.ContainsFunc(s.Notes, func(p mesh.Problem) bool {
				return strings.Contains(p.Text, r.Old.String()) && strings.Contains(p.Advice, "meshd secret rotate on a1")
			})
			if noted == finished {
				t.Errorf("after %v: noted %v: %+v", rounds, noted, s.Notes)
			}
			if want := rotation.Hashes(w.inFile()); !slices.Equal(s.Node.Secrets, want) || !slices.Equal(s.Peers[0].Secrets, want) {
				t.Errorf("after %v: status: got %v and %v, want %v", rounds, s.Node.Secrets, s.Peers[0].Secrets, want)
			}
		}
		if want := []string{"accept", "use", "drop"}; !slices.Equal(rounds, want) {
			t.Errorf("rounds: got %v, want %v", rounds, want)
		}
		own := w.inFile()
		if len(own) != 1 || own[0] == theSecret {
			t.Errorf("own secrets: got %v, want a new one", rotation.Hashes(own))
		}
		for id, s := range secrets {
			if !slices.Equal(s, own) {
				t.Errorf("%s: got %v, want %v", w.names[id], rotation.Hashes(s), rotation.Hashes(own))
			}
		}
	})
}

// TestRotateSecretRefused: a round in which a node is missing is refused with its name, before anything is changed if
// the node is known to be dead, and goes on later.
func TestRotateSecretRefused(t *testing.T) {
	within(t, standsAlone, withSecrets, func(t *testing.T, w *world) {
		secrets, c1 := followers(w), w.c1().ID()
		refused := func(what string, words ...string) {
			t.Helper()
			_, err := w.d.RotateSecret(t.Context())
			if !errors.Is(err, control.ErrRefused) || slices.ContainsFunc(words, func(s string) bool { return !strings.Contains(err.Error(), s) }) {
				t.Errorf("%s: got %v, want %q in it", what, err, words)
			}
		}
		w.hear(func(v *mesh.View) { delete(v.Alive, c1) })
		refused("c1 is dead", "c1 is not alive", "meshd forget c1")
		if got := w.inFile(); !slices.Equal(got, []rotation.Secret{theSecret}) {
			t.Errorf("it has changed the secrets to %v", rotation.Hashes(got))
		}
		w.hear(func(v *mesh.View) { v.Alive[c1] = true })

		delete(secrets, c1)
		refused("c1 can't write", "accept", "c1", "journalctl -u meshd")
		if got := w.inFile(); len(got) != 2 || got[0] != theSecret {
			t.Errorf("after a round that was not finished: got %v, want a second one", rotation.Hashes(got))
		}
		secrets[c1] = []rotation.Secret{theSecret}
		if r, err := w.d.RotateSecret(t.Context()); err != nil || r.Round != "accept" || len(secrets[c1]) != 2 {
			t.Errorf("the round again: got %+v, %v", r, err)
		}
		w.write("secret", "# edited\n", 0o600)
		if r, err := w.d.RotateSecret(t.Context()); err == nil {
			t.Errorf("with a file that has no secret: got %+v", r)
		}
	})
}

// TestFollowOrder has other nodes order what this node may do, and what it may not.
func TestFollowOrder(t *testing.T) {
	within(t, standsAlone, withSecrets, func(t *testing.T, w *world) {
		key := pathKey(t, 5)
		w.d.relayOptions.PathKey = key
		order := func(r rotation.Round, next rotation.Secret) rotation.Order {
			return rotation.Step{Round: r, Old: theSecret, New: next}.Order()
		}
		seal := func(o rotation.Order, by int) gossip.Call {
			t.Helper()
			sealed, err := rotation.Seal(o, w.cfg.Cluster.Name, identityKey(by), w.d.self.ID(), key.PublicKey())
			if err != nil {
				t.Fatal(err)
			}
			return gossip.Call{From: mesh.IDOf(identityKey(by).Public().(ed25519.PublicKey)), Sealed: sealed}
		}
		next, err := rotation.Successor(theSecret, bytes.NewReader(bytes.Repeat([]byte{8}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		const by = 3 // b1's identity
		const stranger = 99
		forged := seal(order(rotation.Accept, next), stranger)
		forged.From = w.b1().ID()
		w.write("secret", "# of the mesh\n"+string(config.Secrets{theSecret}.Replace(nil)), 0o600)
		accept := seal(order(rotation.Accept, next), by)
		for _, step := range []struct {
			name string
			call gossip.Call
			want []rotation.Secret
		}{
			{"a stranger's", seal(order(rotation.Accept, next), stranger), []rotation.Secret{theSecret}},
			{"forged", forged, []rotation.Secret{theSecret}},
			{"too early", seal(order(rotation.Use, next), by), []rotation.Secret{theSecret}},
			{"accept", accept, []rotation.Secret{theSecret, next}},
			{"accept again", accept, []rotation.Secret{theSecret, next}},
			{"use", seal(order(rotation.Use, next), by), []rotation.Secret{next, theSecret}},
			{"accept, replayed", accept, []rotation.Secret{next, theSecret}},
			{"drop", seal(order(rotation.Drop, next), by), []rotation.Secret{next}},
			{"accept, replayed after all", accept, []rotation.Secret{next}},
		} {
			w.network.orders <- step.call
			w.pass(spacing)
			if got := w.inFile(); !slices.Equal(got, step.want) || !slices.Equal(w.d.Status().Node.Secrets, rotation.Hashes(step.want)) {
				t.Errorf("%s: got %v in the file and %v in the record, want %v", step.name, rotation.Hashes(got), w.d.Status().Node.Secrets, rotation.Hashes(step.want))
			}
		}
		content, err := os.ReadFile(filepath.Join(w.dir, "secret"))
		if err != nil || !strings.HasPrefix(string(content), "# of the mesh\n") {
			t.Errorf("the comment is gone: %v", err)
		}
		if info, err := os.Stat(filepath.Join(w.dir, "secret")); err != nil || info.Mode() != 0o600 {
			t.Errorf("mode: got %v, %v, want 0600", info.Mode(), err)
		}

		// What a person has edited and not loaded stays.
		w.write("secret", string(config.Secrets{next, theSecret}.Replace(nil)), 0o600)
		again, err := rotation.Successor(next, bytes.NewReader(bytes.Repeat([]byte{9}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		w.network.orders <- seal(rotation.Step{Round: rotation.Accept, Old: next, New: again}.Order(), by)
		w.pass(spacing)
		if got := w.inFile(); !slices.Equal(got, []rotation.Secret{next, theSecret}) {
			t.Errorf("an edited file: got %v", rotation.Hashes(got))
		}
	})
}

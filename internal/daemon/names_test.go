// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
)

func TestLogHasNames(t *testing.T) {
	record := func(i int, name string) mesh.Record {
		return mesh.Record{Identity: identityKey(i).Public().(ed25519.PublicKey), Name: name}
	}
	a, b, c, stranger := record(1, "a"), record(2, "double"), record(3, "double"), record(4, "")
	var out strings.Builder
	names := new(nodeNames)
	log := slog.New(nameHandler{slog.NewTextHandler(&out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey {
				return slog.Attr{}
			}
			return a
		},
	}), names}).With("node", "self")
	log.Info("early", "peer", a.ID())
	names.set([]mesh.Record{a, b, c})
	log.Info("known", "peer", a.ID(), "id", a.ID(), "count", 3)
	log.Info("stranger", "peer", stranger.ID())
	log.Info("two of a name", "peer", b.ID())
	log.Info("error", "err", fmt.Errorf("join %v: reset by %v", a.ID(), stranger.ID()))
	log.Info("memberlist", gossip.KeyReport, fmt.Sprintf("Suspect %v-0000abcd has failed", a.ID()))
	log.Info("advice", "advice", fmt.Sprintf("run meshd forget %v", a.ID()))
	want := strings.NewReplacer("$A", a.ID().String(), "$B", b.ID().String(), "$S", stranger.ID().String()).Replace(`node=self fingerprint=$A
node=self peer=a id=$A count=3
node=self fingerprint=$S
node=self fingerprint=$B
node=self err="join a: reset by $S"
node=self report="Suspect a has failed"
node=self advice="run meshd forget $A"
`)
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

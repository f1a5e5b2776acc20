// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// soon is within how long a relay that does not do its work is left, which takes some seconds: WireGuard
// begins a new session after two minutes, and may find another way then.
const soon = time.Minute

// TestHostileRelay has two nodes that can't meet talk through a relay that an insider has taken
// over. They leave it for the other one, and nothing that they say can be read on the way.
func TestHostileRelay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	h, err := NewHomes(ctx, meshd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range h.Nodes() {
				t.Logf("log of %s:\n%s", n.Name, lastLines(n.Log()))
			}
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := h.relayed(ctx, nil); err != nil {
		t.Fatal(err)
	}
	talk, err := h.Talk(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer talk.Stop()
	for _, as := range treatments {
		t.Run(as.name, func(t *testing.T) {
			rogue, err := h.relayed(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			talk.CountGaps()
			h.turn(rogue, as.treatment)
			if as.leave {
				soon, cancel := context.WithTimeout(ctx, soon)
				defer cancel()
				if _, err := h.relayed(soon, rogue); err != nil {
					t.Fatalf("the relay is not left: %s", firstWords(err))
				}
			}
			took := time.Since(began)
			if err := passes(ctx, talk); err != nil {
				t.Error(err)
			}
			t.Logf("on the other relay after %s; the longest gap was %s", took.Round(time.Millisecond), talk.LongestGap().Round(time.Millisecond))
			h.turn(rogue, nil)
		})
	}
	if h.sealed.Load() == 0 {
		t.Error("no packet was seen on the relays")
	}
	if n := h.read.Load(); n > 0 {
		t.Errorf("%d packets on the relays can be read", n)
	}
}

// passes waits until five seconds' worth of packets have passed each way.
func passes(ctx context.Context, talk *lab.Exchange) error {
	const enough = uint64(5 * time.Second / packetPeriod)
	one, other := talk.Received()
	for began := time.Now(); ; time.Sleep(lab.Pause(100*time.Millisecond, began)) {
		a, b := talk.Received()
		if a >= one+enough && b >= other+enough {
			return nil
		}
		if time.Since(began) > patience || ctx.Err() != nil {
			return fmt.Errorf("%d and %d packets have passed within %s, want %d each", a-one, b-other, patience, enough)
		}
	}
}

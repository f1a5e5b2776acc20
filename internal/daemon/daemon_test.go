// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"
)

func TestNextBoot(t *testing.T) {
	const now = 1_800_000_000
	tests := []struct {
		name string
		last uint64
		now  int64
		want uint64
	}{
		{"first start, or the count was lost", 0, now, now},
		{"restart", now - 60, now, now},
		{"restart within the second", now, now, now + 1},
		{"the clock went back", now, now - 3600, now + 1},
		{"no clock at all", 3, 0, 4},
		{"a clock before its time", 3, -1, 4},
	}
	for _, tt := range tests {
		if got := nextBoot(tt.last, time.Unix(tt.now, 0)); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestInstancesOrderByStart(t *testing.T) {
	earlier, err := newInstance(1_800_000_000, bytes.NewReader([]byte{255, 255, 255, 255}))
	if err != nil {
		t.Fatal(err)
	}
	later, err := newInstance(1_800_000_001, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if earlier >= later {
		t.Errorf("instances: got %d for the earlier start, %d for the later", earlier, later)
	}
	if _, err := newInstance(1, bytes.NewReader(nil)); err == nil {
		t.Error("no randomness: got no error")
	}
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"time"
)

func TestNextSequence(t *testing.T) {
	now := time.UnixMilli(5_000)
	tests := []struct {
		name       string
		own, shown uint64
		now        time.Time
		want       uint64
	}{
		{"first", 0, 0, now, 1},
		{"next", 7, 7, now, 8},
		{"restart before the others say so", 7, 0, now, 8},
		{"somebody knows of more", 7, 9, now, 5_000},
		{"and is ahead of the clock", 7, 9_000, now, 9_001},
		{"a clock before its time", 7, 9, time.UnixMilli(-1), 10},
	}
	for _, tt := range tests {
		if got := NextSequence(tt.own, tt.shown, tt.now); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

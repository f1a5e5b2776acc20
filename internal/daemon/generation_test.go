// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

func TestAdoptedSettings(t *testing.T) {
	own := parse(t, "cluster: {generation: 3, mode: cross}").Cluster
	later := own
	later.Generation, later.Mode, later.Encapsulation, later.Gateways = 4, mesh.ModeLocation, mesh.EncapsulationNever, 2
	tests := []struct {
		name string
		used mesh.Cluster
		disk state.Adopted
	}{
		{"the file's own", own, state.Adopted{}},
		{"a higher generation", later, state.Adopted{Generation: 4, Mode: mesh.ModeLocation, Encapsulation: mesh.EncapsulationNever, Gateways: 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := adoptedSettings(own, tt.used)
			if got != tt.disk {
				t.Errorf("on disk: got %+v, want %+v", got, tt.disk)
			}
			if diff := cmp.Diff(tt.used, settingsInForce(own, got), compareNet); diff != "" {
				t.Errorf("after a restart (-want +got):\n%s", diff)
			}
		})
	}
	// What was adopted loses against a file that has caught up, or gone beyond.
	caught := own
	caught.Generation = 4
	if diff := cmp.Diff(caught, settingsInForce(caught, adoptedSettings(own, later)), compareNet); diff != "" {
		t.Errorf("the file has the same generation (-want +got):\n%s", diff)
	}
}

// What is on disk of an earlier version may have a generation that no file can go
// beyond.
func TestHostileGenerationOnDisk(t *testing.T) {
	own := mesh.Cluster{Generation: 3, Mode: mesh.ModeFull}
	if got := settingsInForce(own, state.Adopted{Generation: mesh.MaxGeneration + 1, Mode: mesh.ModeCross}); got.Mode != mesh.ModeFull || got.Generation != 3 {
		t.Errorf("got %+v, want the file's own", got)
	}
}

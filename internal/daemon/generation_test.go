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
		name    string
		used    mesh.Cluster
		disk    state.Adopted
		restart mesh.Cluster
	}{
		{"the file's own", own, state.Adopted{}, mesh.Cluster{}},
		{"a higher generation", later, state.Adopted{Generation: 4, Mode: mesh.ModeLocation, Encapsulation: mesh.EncapsulationNever, Gateways: 2}, later},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := adoptedSettings(own, tt.used)
			if got != tt.disk {
				t.Errorf("on disk: got %+v, want %+v", got, tt.disk)
			}
			if diff := cmp.Diff(tt.restart, withSettings(own, got), compareNet); diff != "" {
				t.Errorf("after a restart (-want +got):\n%s", diff)
			}
		})
	}
}

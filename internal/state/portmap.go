// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/portmap"
)

// PortMappingsFile is the name of the file in the state directory with the port mappings that
// routers have made for this host. Some stay until they are removed, also over a boot.
const PortMappingsFile = "portmap.cbor"

// LoadPortMappings returns what SavePortMappings has written last into the state directory at
// dir, or nothing if there is no file. After an error the mappings are asked for as if they were
// new.
func LoadPortMappings(dir string) ([]portmap.Mapping, error) {
	file := filepath.Join(dir, PortMappingsFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read port mappings: %w", err)
	}
	all, err := decodePortMappings(data)
	if err != nil {
		return nil, fmt.Errorf("read port mappings: %s: %w", file, err)
	}
	return all, nil
}

// SavePortMappings replaces the file, or removes it if there are no mappings. After an error the
// old file is still there. The caller must make sure that no other daemon uses the directory.
func SavePortMappings(dir string, all []portmap.Mapping) error {
	file := filepath.Join(dir, PortMappingsFile)
	err := removeLeftovers(file)
	if err == nil && len(all) == 0 {
		if err = os.Remove(file); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	} else if err == nil {
		var data []byte
		if data, err = encodeSummed(all); err == nil {
			err = atomicfile.Write(file, data, fileMode)
		}
	}
	if err != nil {
		return fmt.Errorf("keep port mappings: %w", err)
	}
	return nil
}

func decodePortMappings(data []byte) (all []portmap.Mapping, err error) {
	err = decodeSummed(data, &all)
	return all, err
}

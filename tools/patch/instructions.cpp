// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/instructions.h"

#include <array>

#include <Zydis/Zydis.h>

namespace stopvisor::patch {

std::expected<std::vector<Instruction>, uint64_t> decode(std::span<const std::byte> code, uint64_t base,
                                                         bool long_mode) {
  ZydisDecoder decoder;
  const auto mode = long_mode ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32;
  const auto width = long_mode ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32;
  if (!ZYAN_SUCCESS(ZydisDecoderInit(&decoder, mode, width)))
    return std::unexpected(base);
  constexpr ZydisInstructionAttributes kRepeats =
      ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE;
  std::vector<Instruction> list;
  for (size_t done = 0; done < code.size();) {
    ZydisDecodedInstruction instruction;
    std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
    const uint64_t at = base + done;
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code.data() + done, code.size() - done, &instruction,
                                             operands.data())))
      return std::unexpected(at);
    Instruction entry{at, instruction.length, (instruction.attributes & kRepeats) != 0, {}};
    for (uint8_t i = 0; i < instruction.operand_count_visible; ++i) {
      uint64_t target = 0;
      if (operands[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && operands[i].imm.is_relative &&
          ZYAN_SUCCESS(ZydisCalcAbsoluteAddress(&instruction, &operands[i], at, &target)))
        entry.target = target;
    }
    list.push_back(entry);
    done += instruction.length;
  }
  return list;
}

} // namespace stopvisor::patch

package dev.countersign.client;

import com.google.protobuf.Struct;
import dev.countersign.client.internal.Json;
import java.util.Map;

/** Converts claims and metadata, which messages have as {@code google.protobuf.Struct}. */
public final class JsonStructs {
  private JsonStructs() {}

  /**
   * Converts members to a message.
   *
   * @param members texts, numbers, booleans, null, and lists and maps of those
   * @return the message
   */
  public static Struct toStruct(Map<String, ?> members) {
    return Json.toStruct(members);
  }

  /**
   * Converts a message to members. Whole numbers up to 2^53 become {@link Long}s. A number that
   * JSON cannot write becomes null.
   *
   * @param struct the message
   * @return the members
   */
  public static Map<String, Object> fromStruct(Struct struct) {
    return Json.fromStruct(struct);
  }
}
